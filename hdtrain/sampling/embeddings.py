"""Images from embeddings: what each is conditioned on, begins from and is labelled with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.synthesis import FromEmbeddingsConfig
from hdtrain.data.embeddings_by_key import open_asked
from hdtrain.data.pool import UNLABELLED
from hdtrain.diffusion.slerp import slerp
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest
from hdtrain.models.autoencoder import LatentCodec


@dataclass(frozen=True)
class Condition:
    """One condition: an embedding, or a point between two."""

    keys: tuple[str, ...]
    """One, or two."""
    tau: float = 0.0
    """0 at the first, 1 at the second."""

    @property
    def described(self) -> dict[str, Any]:
        """For the image's metadata."""
        if len(self.keys) == 1:
            return {"source_key": self.keys[0]}
        return {"source_keys": list(self.keys), "tau": round(self.tau, 6)}


@dataclass
class EmbeddingConditions:
    """The conditions of a run by their number; image i of N conditions has condition i mod N.

    Args:
        config: which embeddings.
        embeddings: run directory and manifest of `config.run`, of images or of a prior.
        latents: run directory and manifest of `config.latents`, if there are to be any.

    Raises:
        DataError: a key that the config names has no embedding, or no latent.
    """

    config: FromEmbeddingsConfig
    embeddings: tuple[Path, Manifest]
    latents: tuple[Path, Manifest] | None = None

    def __post_init__(self) -> None:
        self._embeddings, self._latents = open_asked(self.config, self.embeddings, self.latents)

    @cached_property
    def conditions(self) -> Sequence[Condition]:
        """All of them."""
        if self.config.between:
            taus = np.linspace(0, 1, self.config.points).tolist()
            return [Condition(pair, tau) for pair in self.config.between for tau in taus]
        return [Condition((key,)) for key in self.config.keys or self._embeddings.keys()]

    def label(self, number: int) -> int | None:
        """The label that an image of condition `number` inherits; between images of different labels there is none."""
        labels = {self._embeddings.label(key) for key in self.conditions[number].keys}
        label = labels.pop()
        return None if labels or label == UNLABELLED else label

    def tokens(self, numbers: Sequence[int]) -> Float[Tensor, "n k d"]:
        """What the denoiser looks at: embeddings as their encoder gave them, float32.

        Raises:
            DataError: a key has no embedding, or one that is not finite.
        """
        asked = [self.conditions[number] for number in numbers]
        first, last = (self._read([each.keys[end] for each in asked]) for end in (0, -1))
        taus = torch.tensor([each.tau for each in asked], dtype=torch.float32)
        if not taus.any():
            return first
        return slerp(first, last, taus[:, None].expand(first.shape[:2]))

    def _read(self, keys: Sequence[str]) -> Float[Tensor, "n k d"]:
        found = torch.from_numpy(self._embeddings(keys)).float()
        finite = found.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            key = keys[int(finite.logical_not().nonzero()[0])]
            raise DataError(f"{self.embeddings[0]}: the embedding of {key} holds NaN or infinity; make it again")
        return found

    def begin(self, numbers: Sequence[int], codec: LatentCodec) -> Float[Tensor, "n c h w"] | None:
        """The images' own latents z_0 (posterior means, scaled), where the run begins from them."""
        if self._latents is None:
            return None
        moments = torch.from_numpy(self._latents([self.conditions[number].keys[0] for number in numbers])).float()
        mean, std = moments.unbind(1)
        return codec.latent(mean, std, torch.zeros_like(mean))

    def class_indices(self, numbers: Sequence[int], hidden: int) -> Int[Tensor, " n"]:
        """Labels for a denoiser that sees classes too; `hidden` where there is none."""
        labels = (self.label(number) for number in numbers)
        return torch.tensor([hidden if label is None else label for label in labels])
