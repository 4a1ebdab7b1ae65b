"""The text half of a CLIP-like model: sentences to vectors. transformers or open_clip, an extra (`hdtrain[text]`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from hdtrain.config.prior import TextTowerConfig
from hdtrain.errors import HdtrainError, WeightsError
from hdtrain.formats.fingerprint import content_hash

EXTRA = "pip install 'hdtrain[text]'"


@dataclass(frozen=True)
class TextTower:
    """A frozen text encoder."""

    name: str
    """Its architecture, as its own config calls it."""
    weights: str
    """Hash over its folder."""
    embed: Callable[[list[str]], Tensor]

    @property
    def info(self) -> dict[str, str]:
        """What a manifest says of it."""
        return {"name": self.name, "weights": self.weights}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """One vector a text, as the tower gives it. A text has the same vector in any company: one goes at a time."""
        vectors = [self.embed([text])[0].float().cpu().numpy() for text in texts]
        return np.stack(vectors).astype(np.float32)


def load_text_tower(config: TextTowerConfig) -> TextTower:
    """Load a tower from its folder.

    Raises:
        HdtrainError: the package is not installed; says which extra has it.
        WeightsError: the folder holds no such model.
    """
    make = {"transformers": _transformers, "open_clip": _open_clip}[config.kind]
    try:
        name, embed = make(config.folder)
    except ImportError as error:
        package = {"transformers": "transformers", "open_clip": "open_clip_torch"}[config.kind]
        raise HdtrainError(
            f"tower.kind={config.kind} needs the package {package}, which cannot be imported ({error}): {EXTRA}; "
            "vectors that were computed elsewhere need no tower"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"tower.folder {config.folder}: no {config.kind} model that can be loaded: {first}"
        ) from None
    return TextTower(name, content_hash(config.folder), embed)


def _transformers(folder: Path) -> tuple[str, Callable[[list[str]], Tensor]]:
    import transformers

    where = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**where)
    named = transformers.AutoConfig.from_pretrained(**where).architectures or [""]
    kind: Any = getattr(transformers, named[0], transformers.AutoModel)
    model: Any = kind.from_pretrained(**where).eval().requires_grad_(False)

    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        if hasattr(model, "get_text_features"):
            return _pooled(model.get_text_features(**tokens), tokens["attention_mask"])
        return _pooled(model(**tokens), tokens["attention_mask"])

    return type(model).__name__, embed


def _pooled(output: Any, mask: Tensor) -> Tensor:
    """The projected vector where there is one, else the pooled one, else the mean over the text's tokens."""
    if isinstance(output, Tensor):
        return output
    for name in ("text_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    hidden: Tensor = output.last_hidden_state
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def _open_clip(folder: Path) -> tuple[str, Callable[[list[str]], Tensor]]:
    import open_clip

    schema = f"local-dir:{folder}"
    model: Any = open_clip.create_model(schema, require_pretrained=True).eval().requires_grad_(False)
    tokenizer: Any = open_clip.get_tokenizer(schema)

    def embed(texts: list[str]) -> Tensor:
        found: Tensor = model.encode_text(tokenizer(texts))
        return found

    return f"open_clip {type(model).__name__}", embed
