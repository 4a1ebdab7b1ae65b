"""The model card of an exported pipeline: Markdown with the front matter that the Hugging Face hub reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hdtrain.config.exchange import ExportConfig
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.reporting.runs import Run, follow, parent_directories

MAX_STEPS = 200
TAGS = ("hdtrain", "diffusion")


@dataclass(frozen=True)
class WeightsFile:
    """One published file of weights."""

    name: str
    """Relative to the pipeline's folder."""
    size: int
    sha256: str


@dataclass
class _DataSet:
    """A row of the table of training data; cells as they are printed."""

    name: str
    split: str
    num_images: str
    classes: str
    sources: str
    used_by: str
    identity: str


def model_card(
    config: ExportConfig, denoiser: Manifest, decoder: Manifest | None, weights: Sequence[WeightsFile]
) -> str:
    """Everything that the manifests of the models and of what they were made from say, as one page.

    Args:
        config: with both run directories.
        denoiser: its manifest.
        decoder: the autoencoder's; None for a denoiser of pixels.
        weights: the files beside the card.
    """
    runs, warnings = follow([path for path in (config.denoiser, config.decoder) if path])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters["cell"] = _cell
    return environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(config, decoder is not None, bool(denoiser.classes)),
        title=_line(config.title),
        latent=decoder is not None,
        classes=[_line(name) for name in denoiser.classes or []],
        resolution=(decoder or denoiser).info["resolution"],
        steps=_steps(denoiser.info["schedule"]["num_train_timesteps"]),
        facts=list(_facts(denoiser, decoder)),
        datasets=list(_datasets(runs)),
        data_license=_line(config.data_license).rstrip("."),
        warnings=[*_imported(runs.values()), *(f"Warning: {text}." for text in warnings)],
        weights=weights,
    )


def _front_matter(config: ExportConfig, latent: bool, conditional: bool) -> str:
    task = "class-conditional-image-generation" if conditional else "unconditional-image-generation"
    tags = [*TAGS, task, *(["latent-diffusion"] if latent else [])]
    fields: dict[str, Any] = {
        "license": config.license,
        **({"license_name": "see-model-card"} if config.license == "other" else {}),
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": tags,
    }
    return yaml.safe_dump(fields, sort_keys=False)


def _facts(denoiser: Manifest, decoder: Manifest | None) -> Iterator[tuple[str, Any]]:
    """Rows of the table of facts; what a manifest does not say is left out."""
    schedule, info = denoiser.info["schedule"], denoiser.info
    if decoder:
        yield "autoencoder", f"`{decoder.info['preset']}`, made by `hdtrain {decoder.stage}`"
        yield "latent scale", f"{decoder.info['latent_scale']!r} (`scaling_factor`)"
        yield "encoder", f"`{decoder.info['encoder_id']}`"
        yield from _given(decoder.info, {"images_seen": "images seen by the autoencoder", "adapted_to": "adapted to"})
    yield "denoiser", f"`{info['preset']}`, {info['parameters']:,} parameters, made by `hdtrain {denoiser.stage}`"
    yield "resolution", f"{(decoder or denoiser).info['resolution']} px"
    yield from _given(info, {"images_seen": "images seen by the denoiser", "protocol": "protocol", "loss": "loss"})
    yield from _given(info, {"min_snr_gamma": "γ of min-SNR"})
    if denoiser.classes:
        yield "classes", ", ".join(f"{label} {name}" for label, name in enumerate(denoiser.classes))
        yield "classes hidden in training", f"{info['label_dropout']:.0%}"
    yield from _given(info, {"ema_decay": "EMA decay", "ema_std": "EMA length (relative width)"})
    yield "prediction", info["prediction"]
    yield (
        "noise schedule",
        f"{schedule['kind']}, β {schedule['beta_start']:g} to {schedule['beta_end']:g}, "
        f"{schedule['num_train_timesteps']} timesteps"
        + (", zero terminal SNR" if schedule.get("zero_terminal_snr") else ""),
    )
    yield "identity of the denoiser", f"`{denoiser.identity}`"
    yield "hdtrain commit", f"`{denoiser.commit}`"
    if decoder:
        yield "identity of the autoencoder", f"`{decoder.identity}`"
        yield "hdtrain commit of the autoencoder", f"`{decoder.commit}`"


def _given(info: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for key, name in names.items():
        if (value := info.get(key)) is not None:
            yield (
                name,
                f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value,
            )


def _datasets(runs: Mapping[Path, Run]) -> Iterator[_DataSet]:
    """Every set of images that a stage on the way to the models read, once."""
    found: dict[str, _DataSet] = {}
    for directory, run in runs.items():
        if run.manifest is None:
            continue
        for key, named in parent_directories(directory, run.manifest).items():
            entry = run.manifest.parents[key]
            if entry.kind != "images":
                continue
            data = found.setdefault(entry.identity, _data_set(named, entry.identity))
            use = f"{run.stage} ({key})" if key.partition(".")[0] != "images" else run.stage
            data.used_by = ", ".join(dict.fromkeys([*filter(None, data.used_by.split(", ")), use]))
    yield from found.values()


def _data_set(directory: Path, identity: str) -> _DataSet:
    """A row without its uses; a data set that is not there any more, or another by now, has its identity alone."""
    try:
        manifest = read_manifest(directory, ("images",))
    except ManifestError:
        manifest = None
    if manifest is None or manifest.identity != identity:
        return _DataSet(directory.name, "", "not at hand", "", "", "", identity)
    return _DataSet(
        directory.name,
        manifest.split or "",
        f"{manifest.num_samples:,}",
        ", ".join(manifest.classes or []) or "unlabelled",
        ", ".join(map(str, manifest.info.get("sources", []))),
        "",
        identity,
    )


def _imported(runs: Iterable[Run]) -> list[str]:
    imported = [run for run in runs if run.manifest and run.stage == "import"]
    return [f"`{run.name}` was imported: what it was trained on before that is not recorded here." for run in imported]


def _steps(num_timesteps: int) -> int:
    """The most steps up to `MAX_STEPS` that divide the timesteps evenly, and leave at least two each."""
    return max(steps for steps in range(1, min(MAX_STEPS, num_timesteps // 2) + 1) if num_timesteps % steps == 0)


def _cell(value: Any) -> str:
    """One line without what would end a cell of a Markdown table."""
    return _line(str(value)).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())
