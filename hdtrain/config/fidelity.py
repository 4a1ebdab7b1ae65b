"""Config of `evaluate-fidelity`: are images what their embeddings asked for?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from hdtrain.config.base import Config, EmbeddingsOrGridsParent, EmbeddingsParent, ImagesParent, Kinds


class EvaluateFidelityConfig(Config):
    """Compare embeddings of images made from embeddings with what was asked for: `hdtrain evaluate-fidelity`."""

    images: ImagesParent | None = None
    """What `sample` made from embeddings; each says its `source_key`."""
    painting: Annotated[Path | None, Kinds(("painting",))] = None
    """In their place: what `paint` made of a grid; its cells are looked for among themselves."""
    made: EmbeddingsParent
    """Their own embeddings, by `embed`; of a painting those of its cells, cut by `shard`."""
    asked: EmbeddingsOrGridsParent | None = None
    """Of `images`: the embeddings that they were made from; the source is looked for among all of these."""
    max_candidates: int = Field(20_000, ge=2)
    """Of `asked` at most so many, drawn by `seed`, and the sources besides."""
    bootstrap_resamples: int = Field(2000, ge=100)
    """Of the sources."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _images_or_a_painting(self) -> "EvaluateFidelityConfig":
        if (self.images is None) == (self.painting is None):
            raise ValueError("give images, or a painting in their place")
        if self.images is not None and self.asked is None:
            raise ValueError("asked: name the embeddings that the images were made from")
        if self.painting is not None and self.asked is not None:
            raise ValueError("asked belongs to images; a painting has its grid with it")
        return self
