"""How many embeddings an image has, and what each is of: a model must see those that it was trained on. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hdtrain.text import counted, first_few


@dataclass(frozen=True)
class Tokens:
    """The embeddings of one image, or of one cell of a grid."""

    count: int = 1
    order: tuple[str, ...] | None = None
    """A name a token, as `hdtrain.features.views` gives them; None: not known."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Tokens":
        """From `info` of a manifest of embeddings, or `info.embedding` of a denoiser's; older ones tell no order."""
        order = info.get("token_order")
        return cls(int(info.get("tokens", 1)), tuple(order) if order else None)

    def fit(self, wanted: "Tokens") -> bool:
        """Whether they are as many and, as far as is known, the same ones in the same order."""
        return self.count == wanted.count and (None in (self.order, wanted.order) or self.order == wanted.order)

    def __str__(self) -> str:
        named = f" ({first_few(self.order)})" if self.order else ""
        return f"{counted(self.count, 'token')}{named}"
