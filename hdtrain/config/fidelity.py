"""Config of `evaluate-fidelity`: are images what their embeddings asked for?"""

from pydantic import Field

from hdtrain.config.base import Config, EmbeddingsParent, ImagesParent


class EvaluateFidelityConfig(Config):
    """Compare embeddings of images made from embeddings with what was asked for: `hdtrain evaluate-fidelity`."""

    images: ImagesParent
    """What `sample` made from embeddings; each says its `source_key`."""
    made: EmbeddingsParent
    """Their own embeddings, by `embed`."""
    asked: EmbeddingsParent
    """The embeddings that they were made from; the source is looked for among all of these."""
    max_candidates: int = Field(20_000, ge=2)
    """Of `asked` at most so many, drawn by `seed`, and the sources besides."""
    bootstrap_resamples: int = Field(2000, ge=100)
    """Of the sources."""
    seed: int = Field(0, ge=0)
