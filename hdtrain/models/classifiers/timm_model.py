"""The downstream classifier: any timm model."""

import difflib
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from hdtrain.errors import ConfigError, ManifestError
from hdtrain.models.classifiers.base import Classifier


class TimmClassifier(Classifier):
    """Any timm model; takes images in [−1, 1] and applies the model's own normalisation.

    Raises:
        ConfigError: timm knows no such model.
    """

    def __init__(self, name: str, classes: list[str], resolution: int):
        super().__init__("timm", classes, resolution)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ConfigError("timm", [f"model.name: timm knows no model '{name}'; near it: {', '.join(close) or '–'}"])
        self.model = timm.create_model(name, pretrained=False, num_classes=len(classes), **_sized(name, resolution))
        normalisation: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        self.mean, self.std = normalisation["mean"], normalisation["std"]

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((x + 1) / 2 - mean) / std

    @property
    def _model(self) -> Any:
        """timm's models share methods, not a base class."""
        return self.model

    def feature_maps(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """The last map; vision transformers' tokens are not maps.

        Raises:
            ManifestError: the model has no feature maps.
        """
        last = self._model.forward_features(self._normalised(x))
        if last.ndim != 4:
            raise ManifestError(
                f"a {type(self.model).__name__} has tokens, not feature maps; use a convolutional model"
            )
        return [last]

    def features(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n d"]:
        """Pooled features before the classifier layer."""
        features: Tensor = self._model.forward_head(self._model.forward_features(self._normalised(x)), pre_logits=True)
        return features

    def forward(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n k"]:
        """Logits."""
        logits: Tensor = self.model(self._normalised(x))
        return logits


def _sized(name: str, resolution: int) -> dict[str, Any]:
    """The keyword of the models that are built for one size of image: those with positions or windows."""
    config = timm.get_pretrained_cfg(name)
    return {"img_size": resolution} if config is not None and config.fixed_input_size else {}


def _check_patches(model: Any, resolution: int) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    sides = set(patch) if isinstance(patch, tuple) else {patch} if isinstance(patch, int) else set()
    if any(resolution % side for side in sides):
        raise ValueError(f"it sees patches of {max(sides)} px, and {resolution} is no multiple of that")


def check_timm(name: str, resolution: int) -> None:
    """Build the model from shapes alone and show it an image: nothing is computed.

    Raises:
        ConfigError: timm knows no such model, or it takes no images of this size.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
            model = TimmClassifier(name, ["a", "b"], resolution).eval()
            _check_patches(model.model, resolution)
            model.model(torch.empty(1, 3, resolution, resolution))
    except ConfigError:
        raise
    except Exception as error:  # each family of models has its own way to say so
        native = timm.get_pretrained_cfg(name)
        size = f"; it was made for {native.input_size[-1]} px" if native is not None else ""
        why = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"model.reader.resolution: '{name}' takes no images of {resolution} px ({why}){size}"
        raise ConfigError("timm", [problem]) from None
