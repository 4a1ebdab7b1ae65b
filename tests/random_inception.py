"""Inception-2015 with random weights: both usual ports of it, made on the spot, and few images of two real tissues."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hdtrain.features.inception import INPUT_PX, Inception2015


def random_network(seed=0):
    """Weights by He et al. (2015) and batch statistics away from 0 and 1, so that features neither fade nor grow."""
    torch.manual_seed(seed)
    net = Inception2015()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, mean, std in ((module.weight, 1, 0.1), (module.bias, 0.1, 0.1), (module.running_mean, 0, 0.1)):
                nn.init.normal_(tensor, mean, std)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net.eval()


class Script(nn.Module):
    """What NVIDIA's TorchScript offers: `layers`, and a forward pass that resizes first."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        x = nn.functional.interpolate(x.float(), size=[299, 299], mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


def save_script(layers, path, size=INPUT_PX):
    with torch.no_grad():
        torch.jit.script(Script(torch.jit.trace(layers, torch.rand(1, 3, size, size), check_trace=False))).save(path)
    return path


def pil_float(image):
    """clean-fid's rule by Pillow itself: float32 (299, 299, 3), clipped, not rounded."""
    planes = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(plane.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(resized, axis=-1).clip(0, 255)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception-random.pth"
    torch.save(random_network().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inception_script(tmp_path_factory):
    return save_script(random_network(), tmp_path_factory.mktemp("inception") / "inception-random.pt")


@pytest.fixture(scope="session")
def two_tissues(real_data):
    """uint8 RGB (6, 150, 150, 3) of tumour, and of stroma."""
    folders = [real_data / "kather2016_crc8" / "train" / name for name in ("01_TUMOR", "02_STROMA")]
    files = [sorted(folder.iterdir())[:6] for folder in folders]
    return [np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]) for paths in files]
