"""Do a grid, a denoiser and a decoder fit each other? Before anything is loaded. No torch."""

import json
import shutil
from pathlib import Path
from typing import Any

from hdtrain.config.painting import PaintConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.steps import check_steps
from hdtrain.errors import ConfigError, HdtrainError, ManifestError
from hdtrain.formats.embedding_grid import EmbeddingGrid
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.tokens import Tokens
from hdtrain.sampling.fit import ManifestOf, check_decoder
from hdtrain.sampling.painting.grids import open_grid
from hdtrain.sampling.painting.plan import PaintPlan, plan_of
from hdtrain.sampling.prior_fit import expected_grid


def check(config: PaintConfig, manifest_of: ManifestOf) -> PaintPlan:
    """Everything that can be known before the run but the room on the disk; return the painting's sizes.

    Raises:
        ManifestError: the models do not fit each other or the grid.
        ConfigError: steps or stride do not fit the denoiser, an edit does not fit the grid.
        DataError: the grid is unreadable or has holes.
    """
    check_models(config, manifest_of)
    wanted = Tokens.of(manifest_of(config.denoiser).info["embedding"])
    grid = open_grid(config, wanted, from_prior(config, manifest_of))
    check_grid(grid, config, manifest_of)
    return plan_for(config, grid, manifest_of)


def from_prior(config: PaintConfig, manifest_of: ManifestOf) -> EmbeddingGrid | None:
    """What a prior would give, but for its embeddings; None where the grid comes from elsewhere.

    Raises:
        ManifestError, ConfigError, DataError: the prior cannot be asked for this (`hdtrain.sampling.prior_fit`).
    """
    if config.prior is None:
        return None
    manifest = manifest_of(config.prior)
    return expected_grid(config, config.prior, manifest, config.prior_guidance, config.prior_steps)


def check_models(config: PaintConfig, manifest_of: ManifestOf) -> None:
    """Refuse a denoiser without embeddings, or of several with a prior; a decoder of another latent space; steps that
    do not fit.

    Raises:
        ManifestError: the models do not fit.
        ConfigError: the steps do not.
    """
    info = manifest_of(config.denoiser).info
    if not info.get("embedding"):
        raise ManifestError(
            f"{config.denoiser} is not conditioned on embeddings, and `paint` asks it for one in every window; train "
            "one with `hdtrain train-ldm … embeddings=RUN`"
        )
    if config.prior is not None and (wanted := Tokens.of(info["embedding"])).count > 1:
        raise ManifestError(
            f"{config.denoiser} was trained on {wanted} an image, and {config.prior} draws one a cell; take a denoiser "
            "that was trained on one embedding an image, or paint the grid of a slide: grid.source=RUN"
        )
    if config.guidance != 1 and not info["embedding"].get("dropout", 1):
        raise ManifestError(
            f"guidance={config.guidance:g}: {config.denoiser} was trained with no dropout of the embedding and cannot "
            "do without it; give guidance=1, or train it with a dropout of 0.1"
        )
    check_decoder(config, manifest_of)
    schedule = NoiseScheduleConfig(**info["schedule"])
    check_steps("ddim", config.steps, schedule.num_train_timesteps, schedule.zero_terminal_snr, key="steps")


def check_grid(grid: EmbeddingGrid, config: PaintConfig, manifest_of: ManifestOf) -> None:
    """Refuse embeddings of another dimension or encoder than the denoiser's.

    Raises:
        ManifestError: says which.
    """
    embedding = manifest_of(config.denoiser).info["embedding"]
    grid.check_encoder(embedding["dim"], embedding.get("encoder_hash"), str(config.denoiser))


def plan_for(config: PaintConfig, grid: EmbeddingGrid, manifest_of: ManifestOf) -> PaintPlan:
    """Sizes of the painting, from the models' configs.

    Raises:
        ConfigError: the stride is larger than a window.
    """
    unet = _architecture(config.denoiser)
    window, channels = int(unet["sample_size"]), int(unet["in_channels"])
    factor = 1
    if config.decoder is not None:
        factor = 2 ** (len(_architecture(config.decoder)["block_out_channels"]) - 1)
    if config.stride is not None and config.stride > window:
        problem = f"stride: at most {window}, the window of {config.denoiser}, got {config.stride}; a quarter is usual"
        raise ConfigError("paint", [problem])
    return plan_of(config, grid.rows, grid.columns, (channels, window, window), window * factor)


def check_disk(plan: PaintPlan, config: PaintConfig, directory: Path) -> None:
    """Refuse a canvas that the disk has no room for; `directory` need not be there yet.

    Raises:
        HdtrainError: says what is needed and what is free.
    """
    kept = sum(path.stat().st_size for path in RunDir(directory).work.glob("*") if path.is_file())
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    needed, free = plan.disk_bytes(config), shutil.disk_usage(there).free + kept
    if needed > free:
        height, width = plan.pixels
        smaller = "cut the grid with grid.rows and grid.columns"
        if config.prior is not None:
            smaller = "ask the prior for fewer rows and columns"
        raise HdtrainError(
            f"a painting of {width:,} × {height:,} pixels needs up to {needed / 1e9:.1f} GB while it is made, and "
            f"{directory} has {free / 1e9:.1f} GB free; free some room, give another --out, or {smaller}"
        )


def _architecture(directory: Path) -> dict[str, Any]:
    """The published model's config, as diffusers writes it.

    Raises:
        ManifestError: it is not there.
    """
    path = RunDir(directory).model / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}; restore it, or publish {directory} again") from None
    return found
