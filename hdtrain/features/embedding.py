"""Embeddings of images as tokens: every view through a frozen encoder, in batches of one size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from hdtrain.data.threads import Threads
from hdtrain.data.tile_context import TileContext
from hdtrain.data.tile_places import TilePlaces
from hdtrain.data.whole_images import WholeImage
from hdtrain.errors import DataError
from hdtrain.features.encoders import Encoder
from hdtrain.features.store import padded
from hdtrain.features.views import View
from hdtrain.formats.atomic import canonical_json, sha256_bytes

Image = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Embedder:
    """An encoder and what it looks at."""

    encoder: Encoder
    views: tuple[View, ...]
    batch_size: int
    places: TilePlaces
    context: TileContext | None = None
    """Needed where a view is a context."""
    threads: int = 2
    """That put contexts together."""

    @cached_property
    def token_names(self) -> list[str]:
        """One a token, in order."""
        return [name for view in self.views for name in view.token_names]

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of an image, features of a token."""
        return len(self.token_names), self.encoder.dim

    @property
    def info(self) -> dict[str, Any]:
        """What a manifest says of the embeddings; `token_order` names the tokens as they lie in a record."""
        description = self.encoder.description
        return {
            "encoder": description,
            "encoder_hash": sha256_bytes(canonical_json(description)),
            "tokens": self.shape[0],
            "dim": self.shape[1],
            "views": [view.name for view in self.views],
            "token_order": self.token_names,
        }

    def tokens(self, shard: int, images: Sequence[WholeImage]) -> Float16[np.ndarray, "n t d"]:
        """The embeddings of images of one shard, as the encoder gives them.

        Raises:
            DataError: NaN, infinity or more than fp16 holds, names the key; an image without a place for its context.
        """
        parts = [
            self._embedded(self._crops(view, shard, images), len(images) * view.tokens, view.is_context)
            for view in self.views
        ]
        exact = np.concatenate([part.reshape(len(images), -1, self.encoder.dim) for part in parts], axis=1)
        self._check(exact, images)
        return exact.astype(np.float16)

    def _crops(self, view: View, shard: int, images: Sequence[WholeImage]) -> Iterator[Image]:
        """What the encoder sees, image after image."""
        if not view.is_context:
            yield from (crop for image in images for crop in view.crops(image.pixels))
            return
        assert self.context is not None, "opened with the views"
        keys = [image.key for image in images]
        rows = self.places.find(shard, keys)
        self.context.check(rows, keys)
        workers = Threads(self.threads)
        try:
            for first in range(0, len(images), self.threads):
                some = range(first, min(first + self.threads, len(images)))
                yield from self._contexts(view, workers, [(int(rows[i]), images[i].pixels) for i in some])
        finally:
            workers.close()

    def _contexts(self, view: View, workers: Threads, tiles: list[tuple[int, Image]]) -> list[Image]:
        """A few at a time: they are large."""
        assert self.context is not None, "opened with the views"
        context, found = self.context, [np.empty((0, 0, 3), np.uint8)] * len(tiles)

        def put_together(i: int) -> None:
            found[i] = context.around(*tiles[i], view.number)

        workers.each(put_together, len(tiles))
        return found

    def _embedded(self, crops: Iterator[Image], count: int, large: bool) -> Float32[np.ndarray, "m d"]:
        """Features of so many crops, in full batches."""
        features, done = np.empty((count, self.encoder.dim), np.float32), 0
        while done < count:
            size = min(self.batch_size, count - done)
            features[done : done + size] = self._batch(crops, size, large)
            done += size
        return features

    def _batch(self, crops: Iterator[Image], size: int, large: bool) -> Float32[np.ndarray, "b d"]:
        if large:  # brought to the encoder's size one by one
            some = (next(crops) for _ in range(size))
            return self.encoder.embed_each(some, self.batch_size)[:size].cpu().numpy()
        batch = [next(crops) for _ in range(size)]
        if len({crop.shape for crop in batch}) > 1:
            return self.encoder.embed_each(batch, self.batch_size)[:size].cpu().numpy()
        return self.encoder.embed(padded(np.stack(batch), self.batch_size))[:size].cpu().numpy()

    def _check(self, exact: Float32[np.ndarray, "n t d"], images: Sequence[WholeImage]) -> None:
        limit = float(np.finfo(np.float16).max)
        good = (np.abs(exact) <= limit).reshape(len(exact), -1).all(axis=1)  # False for NaN
        if good.all():
            return
        first = int(np.flatnonzero(~good)[0])
        if np.isfinite(exact[first]).all():
            found = f"{np.abs(exact[first]).max():.3g}, more than fp16 holds ({limit:.0f})"
        else:
            found = "NaN or infinity"
        raise DataError(
            f"encoder {self.encoder.name} gives {found} for {images[first].key}; check its weights, and the input that "
            "it wants (size, mean, std)"
        )
