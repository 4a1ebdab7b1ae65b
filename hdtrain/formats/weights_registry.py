"""Weights that hdtrain knows by name: what each is for, where it lies, and its sha256."""

import re
from dataclasses import dataclass

TIMM = "timm/"
_HUB = "https://huggingface.co/timm/{model}/resolve/main/model.safetensors"
_TORCHVISION = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class KnownWeights:
    """One file. Of some only the first digits of the sha256 are known: those in torchvision's file names."""

    name: str
    purpose: str
    file: str
    url: str
    licence: str
    sha256: str | None = None
    """All 64 digits, or the first ones; None: unknown before the file is there."""
    size_bytes: int | None = None

    def fits(self, sha256: str) -> bool:
        """Whether a file of this hash can be it."""
        return sha256.startswith(self.sha256 or "")


INCEPTION_STATE = KnownWeights(
    "inception-pytorch-fid",
    "FID: Inception-2015 as pytorch-fid and torch-fidelity have it (a state dict)",
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "Apache-2.0 (TensorFlow's model)",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
INCEPTION_SCRIPT = KnownWeights(
    "inception-nvidia",
    "FID: Inception-2015 as StyleGAN3, EDM and clean-fid have it (NVIDIA's TorchScript)",
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "Apache-2.0 (TensorFlow's model), as NVIDIA distributes it",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    95_607_719,
)
KNOWN = {
    known.name: known
    for known in (
        INCEPTION_STATE,
        INCEPTION_SCRIPT,
        KnownWeights(
            "vgg16",
            "LPIPS on VGG-16 (perceptual.kind: lpips-vgg): torchvision's backbone",
            "vgg16-397923af.pth",
            f"{_TORCHVISION}vgg16-397923af.pth",
            "BSD-3-Clause (torchvision)",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
        KnownWeights(
            "alexnet",
            "LPIPS on AlexNet: torchvision's backbone",
            "alexnet-owt-7be5be79.pth",
            f"{_TORCHVISION}alexnet-owt-7be5be79.pth",
            "BSD-3-Clause (torchvision)",
            "7be5be79",
        ),
        KnownWeights(
            "squeezenet1_1",
            "LPIPS on SqueezeNet 1.1: torchvision's backbone",
            "squeezenet1_1-b8a52dc0.pth",
            f"{_TORCHVISION}squeezenet1_1-b8a52dc0.pth",
            "BSD-3-Clause (torchvision)",
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
            4_958_839,
        ),
    )
}
"""By name. Besides, any `timm/MODEL`."""
INCEPTION_PORTS = {str(INCEPTION_STATE.sha256): "pytorch-fid", str(INCEPTION_SCRIPT.sha256): "nvidia"}
"""sha256 to the port: a distance on features of other weights is not called FID."""


def find_known(name: str) -> KnownWeights | None:
    """What is known of `name`: a row of the table, or a model of timm's on the Hugging Face hub."""
    if name in KNOWN:
        return KNOWN[name]
    if not re.fullmatch(rf"{TIMM}[\w.-]+", name):
        return None
    model = name.removeprefix(TIMM)
    return KnownWeights(
        name,
        f"timm's {model} (encoder.kind: timm)",
        f"timm--{model}.safetensors",
        _HUB.format(model=model),
        f"see https://huggingface.co/timm/{model}",
    )
