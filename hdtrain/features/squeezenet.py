"""SqueezeNet 1.1 (Iandola et al. 2016), the convolutions only, with weights from an `.npz` of the Caffe port."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.errors import WeightsError
from hdtrain.features.weights import refuse

BGR_MEAN = (103.939, 116.779, 123.68)
FIRES = (
    *((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)),
    *((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
)
"""Fires 2 to 9: channels in, squeezed, and each of the two expansions."""
FEATURE_DIM = 512
MAPS_AFTER = ("conv1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")
"""Where the perceptual distance looks: before every pooling and after every later fire."""


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1×1 and 3×3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, 2·expanded, h, w)."""
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


class SqueezeNet(nn.Module):
    """The trunk up to fire9."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for number, channels in enumerate(FIRES, start=2):
            self.add_module(f"fire{number}", Fire(*channels))
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.register_buffer("bgr_mean", torch.tensor(BGR_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """RGB 0..255 to the maps of `MAPS_AFTER`, finest first."""
        maps = []
        x = x.flip(1) - self.bgr_mean  # type: ignore[operator]
        for name in ("conv1", *(f"fire{number}" for number in range(2, 10))):
            x = getattr(self, name)(x)
            x = x.relu() if name == "conv1" else x
            if name in MAPS_AFTER:
                maps.append(x)
            if name in ("conv1", "fire3", "fire5"):
                x = self.pool(x)
        return maps


def load_squeezenet(path: Path) -> SqueezeNet:
    """The trunk with the weights of an `.npz` (arrays `NAME.w` OIHW and `NAME.b`).

    Raises:
        WeightsError: the file is missing or unreadable, or an array is missing or misshapen (named).
    """
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: cannot be read as .npz: {error}") from None
    model = SqueezeNet()
    state = {}
    problems = []
    for name, value in model.state_dict().items():
        module, _, parameter = name.rpartition(".")
        array_name = f"{module.replace('.', '/')}.{parameter[0]}"
        array = arrays.get(array_name)
        if array is None or array.shape != tuple(value.shape):
            found = "missing" if array is None else f"{array.shape}"
            problems.append(f"{array_name} is {found}, expected {tuple(value.shape)}")
        else:
            state[name] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    refuse(path, problems, "SqueezeNet 1.1")
    model.load_state_dict(state)
    return model
