"""TorchScripts of the user's own, loaded and run so that what goes wrong is one message."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.errors import WeightsError


def load_script(path: Path) -> nn.Module:
    """A TorchScript in eval mode, on the CPU.

    Raises:
        WeightsError: the file is missing or no TorchScript.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such TorchScript")
    try:
        with warnings.catch_warnings():  # torch advises against new files of this format; many encoders come in it
            warnings.simplefilter("ignore")
            script: Any = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: cannot be read as TorchScript: {reason}; expected a file of torch.jit.save; for a plain state "
            "dict use encoder.kind=timm with weights"
        ) from None
    net: nn.Module = script.eval()
    return net


def run_script(script: nn.Module, x: Float[Tensor, "n 3 r r"], path: Path) -> Float[Tensor, "n d"] | Tensor:
    """Its output (n, d) or (n, t, d) for normalised images.

    Raises:
        WeightsError: it fails, or gives something else.
    """
    try:
        with torch.jit.optimized_execution(False):  # else the first batches are computed in another way than later ones
            features = script(x)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise WeightsError(f"{path}: fails on images {tuple(x.shape)}: {reason}; check encoder.input_px") from None
    if not isinstance(features, Tensor) or features.ndim not in (2, 3) or len(features) != len(x):
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise WeightsError(
            f"{path}: gives {found} for {len(x)} images; expected a tensor (images, features) or (images, tokens, "
            "features)"
        )
    return features
