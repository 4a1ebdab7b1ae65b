"""Config of `embed`: what a frozen encoder says of every image."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from hdtrain.config.base import ImagesParent, Incidental
from hdtrain.config.training import EncoderConfig, ShardAccess

WHOLE = "whole"
_VIEW = re.compile(r"whole|centre-1/([2-9]|[1-9][0-9])|grid-([2-9]|1[0-9])|context-([2-9]|1[0-6])")


class EmbedConfig(ShardAccess):
    """Embeddings of every image: `hdtrain embed`."""

    images: list[ImagesParent] = Field(min_length=1)
    encoder: EncoderConfig
    views: list[str] = Field([WHOLE], min_length=1)
    """What the encoder looks at, in this order, a token each (grid-N: N²): `whole`; `centre-1/N`, the middle with that
    share of the side; `grid-N`, N × N parts, row by row; `context-N`, the N times wider region around a tile."""
    resolution: int | None = Field(None, ge=8)
    """Images are brought to this size first, as the autoencoder's training does (`reader.resolution`), but not the
    regions of `context-N`; None: as they are."""
    resize: Literal["squash", "crop"] = "squash"
    """As `reader.resize`, where there is a `resolution`."""
    batch_size: int = Field(32, ge=1)
    """Views that the encoder gets at once; always so many, since kernels give other bits at other shapes."""
    records_per_member: int = Field(256, ge=1)
    threads: Annotated[int, Incidental()] = Field(2, ge=1)
    """Decoding threads."""
    context_cache_bytes: Annotated[int, Incidental()] = Field(256 * 2**20, ge=0)
    """Decoded tiles that are kept for the contexts of their neighbours."""
    max_failed_share: float = Field(0.01, ge=0, le=1)
    """More broken images than this stop the stage; fewer are skipped, named and counted."""

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: list[str]) -> list[str]:
        for view in views:
            if not _VIEW.fullmatch(view):
                raise ValueError(
                    f"'{view}' is no view; expected whole, centre-1/N (N from 2), grid-N (2 to 19) or context-N "
                    "(2 to 16), as centre-1/4"
                )
        twice = sorted({view for view in views if views.count(view) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} twice; name every view once")
        return views

    @property
    def has_context(self) -> bool:
        """Whether a view needs a tile's neighbours."""
        return any(view.startswith("context-") for view in self.views)
