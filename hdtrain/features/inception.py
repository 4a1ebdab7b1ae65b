"""Inception-2015 up to pool3, the network of the FID (Heusel et al. 2017), from either of its usual ports.

Both are the TensorFlow graph of 2015-12-05. It differs from torchvision's Inception v3: average pools leave padding out
of their count, the last block takes the maximum instead, and there are 1,008 outputs.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception as torchvision_inception

from hdtrain.errors import WeightsError
from hdtrain.features.weights import load_strictly, read_state

INPUT_PX = 299
FEATURE_DIM = 2048
_COUNTER = "num_batches_tracked"


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


class _BlockA(torchvision_inception.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))]


class _BlockC(torchvision_inception.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_average(x))]


class _BlockE(torchvision_inception.InceptionE):
    pool = staticmethod(_average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            *(self.branch3x3_2a(single), self.branch3x3_2b(single)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(self.pool(x)),
        ]


class _LastBlockE(_BlockE):
    pool = staticmethod(_largest)


class Inception2015(nn.Module):
    """The state-dict port. `fc` is there because the file has it; features don't pass through it."""

    def __init__(self) -> None:
        super().__init__()
        conv, block_b, block_d = (
            torchvision_inception.BasicConv2d,
            torchvision_inception.InceptionB,
            torchvision_inception.InceptionD,
        )
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.Mixed_5b = _BlockA(192, pool_features=32)
        self.Mixed_5c = _BlockA(256, pool_features=64)
        self.Mixed_5d = _BlockA(288, pool_features=64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = _BlockC(768, channels_7x7=128)
        self.Mixed_6c = _BlockC(768, channels_7x7=160)
        self.Mixed_6d = _BlockC(768, channels_7x7=160)
        self.Mixed_6e = _BlockC(768, channels_7x7=192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = _BlockE(1280)
        self.Mixed_7c = _LastBlockE(2048)
        self.fc = nn.Linear(FEATURE_DIM, 1008)

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> Float[Tensor, "n 2048"]:
        """pool3 of images in [−1, 1)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))


class ScriptedInception(nn.Module):
    """NVIDIA's TorchScript. Its `layers` begin after its own resize, so that ours can take that place."""

    def __init__(self, script: Any):
        super().__init__()
        self.script = script

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> Float[Tensor, "n 2048"]:
        """pool3 of images in [−1, 1)."""
        with torch.jit.optimized_execution(False):  # else the first batches are computed in another way than later ones
            features: Tensor = self.script.layers(x)
        return features.reshape(len(x), FEATURE_DIM)


def load_inception(path: Path) -> nn.Module:
    """The network with the weights of either port: (n, 3, 299, 299) in [−1, 1) to (n, 2048).

    Raises:
        WeightsError: the file is missing, cut off, or of another network.
    """
    return _load_script(path) if _is_script(path) else _load_state(path)


def _load_state(path: Path) -> Inception2015:
    net = Inception2015().eval()
    counters = {name: value for name, value in net.state_dict().items() if name.endswith(_COUNTER)}
    load_strictly(net, counters | read_state(path), path)  # torch 0.4, which wrote the file, need not have counted
    return net


def _is_script(path: Path) -> bool:
    """A TorchScript is a zip with code in it; a state dict is a zip without, or none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


@torch.no_grad()
def _load_script(path: Path) -> ScriptedInception:
    try:
        with warnings.catch_warnings():  # torch advises against new files of this format; this one is of 2020
            warnings.simplefilter("ignore", FutureWarning)
            script: Any = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as TorchScript: {str(error).splitlines()[0]}") from None
    expected = f"expected NVIDIA's inception-2015-12-05.pt, whose `layers` give {FEATURE_DIM} features an image"
    if not hasattr(script, "layers"):
        raise WeightsError(f"{path}: this TorchScript has no `layers`; {expected}")
    net = ScriptedInception(script)
    try:
        net(torch.zeros(2, 3, INPUT_PX, INPUT_PX))
    except (RuntimeError, TypeError) as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise WeightsError(f"{path}: not the TorchScript of Inception: {reason}; {expected}") from None
    return net
