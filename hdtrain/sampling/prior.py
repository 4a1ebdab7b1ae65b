"""Grids of embeddings from a prior: DDIM with classifier-free guidance, grid i a function of (seed, i) alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hdtrain.config.load import read_yaml
from hdtrain.config.prior import PriorConditions, TextTowerConfig
from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.conditioning import classifier_free
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import generator
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.features.text_tower import load_text_tower
from hdtrain.formats.embedding_grid import UNKNOWN_PX, EmbeddingGrid
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.published_prior import PublishedPrior, load_prior
from hdtrain.sampling.prior_fit import Wish, check_asked, expected_grid, size_asked, wishes_of

BATCH_SIZE = 8


@dataclass(frozen=True)
class GridSampler:
    """Samples of one prior.

    Args:
        prior: frozen.
        manifest: its manifest.
        size: rows and columns.
        guidance: w of ẑ_u + w·(ẑ_c − ẑ_u).
        steps: of DDIM.
        seed: of the noise.
        batch_size: grids at once; a last batch is filled up.
        saw: told after every look at a batch: once a step.
    """

    prior: PublishedPrior
    manifest: Manifest
    size: tuple[int, int]
    guidance: float
    steps: int
    seed: int
    batch_size: int = BATCH_SIZE
    saw: Callable[[], None] = lambda: None

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int], wishes: Sequence[Wish]) -> list[EmbeddingGrid]:
        """Grids of these numbers, as many as there are wishes; at most `batch_size`."""
        count, info = len(numbers), self.manifest.info
        filled = [*wishes, *([wishes[-1]] * (self.batch_size - count))]
        drawn = [*numbers, *([numbers[-1]] * (self.batch_size - count))]
        noise = torch.stack([self._noise(number) for number in drawn]).to(device())
        told = self._told(filled)
        hidden = (told[0], torch.zeros_like(told[1]), *told[2:])
        guided = bool(told[1].any())
        denoise = classifier_free(self.prior.network, told, hidden, self.guidance if guided else None)
        schedule = NoiseSchedule(NoiseScheduleConfig(**info["schedule"]))
        solver = SolverConfig(kind="ddim", steps=self.steps)

        def told_of(z: Tensor, t: Tensor) -> Tensor:
            self.saw()
            return denoise(z, t)

        z0 = sample_latents(told_of, schedule, solver, noise, prediction="sample")
        raw = self.prior.embeddings.undo(z0[:count].float().cpu().numpy()).astype(np.float32)
        return [self._grid(*one) for one in zip(numbers, wishes, raw, strict=True)]

    def _noise(self, number: int) -> Float[Tensor, "r c d"]:
        shape = (*self.size, int(self.manifest.info["embedding"]["dim"]))
        return torch.randn(shape, generator=generator(self.seed, "grid", number))

    def _told(self, wishes: Sequence[Wish]) -> tuple[Tensor, ...]:
        """Present, given, labels, text, numeric."""
        sizes: Any = self.prior.network.config
        text, numeric = (np.zeros((len(wishes), sizes[f"{name}_dim"]), np.float32) for name in ("text", "numeric"))
        for row, wish in enumerate(wishes):
            if wish.text is not None:
                text[row] = wish.text / max(float(np.linalg.norm(wish.text)), 1e-12) * text.shape[1] ** 0.5
            if wish.numeric is not None and self.prior.numeric is not None:
                numeric[row] = self.prior.numeric.apply(wish.numeric)
        present = np.ones((len(wishes), *self.size), np.bool_)
        given = np.array([[x is not None for x in (w.label, w.text, w.numeric)] for w in wishes])
        labels = np.array([wish.label or 0 for wish in wishes], np.int64)
        return tuple(torch.from_numpy(array).to(device()) for array in (present, given, labels, text, numeric))

    def _grid(self, number: int, wish: Wish, embeddings: np.ndarray) -> EmbeddingGrid:
        classes = self.manifest.classes
        return EmbeddingGrid(
            wish.name(number, classes),
            embeddings,
            np.ones(self.size, np.bool_),
            np.full(self.size, UNKNOWN_PX, np.int64),
            np.full(self.size, UNKNOWN_PX, np.int64),
            mpp=self.manifest.info.get("mpp"),
            label=classes[wish.label] if classes and wish.label is not None else None,
            encoder_hash=self.manifest.info["embedding"]["encoder_hash"],
        )


def wishes_with_text(conditions: PriorConditions, prior: Path, manifest: Manifest) -> list[Wish]:
    """What is asked for, a sentence turned into its vector by the prior's own tower.

    Raises:
        ManifestError: as `prior_fit.check`, or the tower is another than the prior's.
        HdtrainError: the tower's package is not installed.
    """
    wishes = list(wishes_of(conditions, prior, manifest))
    if conditions.text is None:
        return wishes
    known, tower = manifest.info["text"], load_text_tower(conditions.tower or _trained_tower(prior))
    if tower.info != known["tower"]:
        raise ManifestError(
            f"the text tower is {tower.name} ({tower.weights[:12]}), and {prior} was trained with "
            f"{known['tower']['name']} ({known['tower']['weights'][:12]}); give tower.folder of that one"
        )
    vector = tower([conditions.text])[0]
    return [replace(wish, text=vector) for wish in wishes]


def _trained_tower(prior: Path) -> TextTowerConfig:
    """Where the tower was in training."""
    found = TextTowerConfig(**read_yaml(RunDir(prior).config)["text"]["tower"])
    if not found.folder.exists():
        raise ConfigError("prior", [f"tower: {found.folder} is no longer there; say where it is: tower.folder=FOLDER"])
    return found


def sample_grids(
    prior: Path,
    conditions: PriorConditions,
    count: int = 1,
    guidance: float = 2.0,
    seed: int = 0,
    steps: int = 200,
    batch_size: int = BATCH_SIZE,
    saw: Callable[[], None] = lambda: None,
) -> list[EmbeddingGrid]:
    """`count` grids for everything that the conditions ask for (each key of their files), numbered in that order.

    Args:
        prior: a published run of kind `prior`.
        conditions: size, class, text, numbers.
        count: of each.
        guidance: w; 1 is the conditions alone.
        seed: of the noise.
        steps: of DDIM.
        batch_size: grids at once; part of the result's last bits.
        saw: told once a step of every batch.

    Raises:
        ManifestError: the prior is not published, or cannot be asked for this.
        ConfigError: the steps do not fit its schedule, or a key is not there.
        DataError: a file of vectors cannot be read.
    """
    manifest = read_manifest(prior, ("prior",))
    check_asked(conditions, prior, manifest, guidance, steps)
    wishes = [wish for wish in wishes_with_text(conditions, prior, manifest) for _ in range(count)]
    published = load_prior(prior, device())
    size = size_asked(conditions, manifest)
    sampler = GridSampler(published, manifest, size, guidance, steps, seed, batch_size, saw)
    grids = []
    for first in range(0, len(wishes), batch_size):
        part = wishes[first : first + batch_size]
        grids += sampler(range(first, first + len(part)), part)
    return grids


def one_grid(
    prior: Path,
    conditions: PriorConditions,
    guidance: float,
    seed: int,
    steps: int,
    saw: Callable[[], None] = lambda: None,
) -> EmbeddingGrid:
    """The grid that `paint` asks for: number 0 of the seed. `saw` as of `sample_grids`; errors as of
    `prior_fit.expected_grid`.
    """
    expected_grid(conditions, prior, read_manifest(prior, ("prior",)), guidance, steps)
    return sample_grids(prior, conditions, 1, guidance, seed, steps, 1, saw)[0]
