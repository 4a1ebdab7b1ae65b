"""Perceptual distances: zero for equal images, finite gradients, and the right name."""

import lpips
import pytest
import torch
from torchvision.models import vgg16

from hdtrain.config.training import LpipsVgg, NoPerceptual, SqueezenetEncoder, TimmEncoder
from hdtrain.errors import WeightsError
from hdtrain.features.perceptual import build_perceptual


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random VGG-16 weights in torchvision's layout: the loading is tested, not what the network knows."""
    torch.manual_seed(0)
    state = {name: value for name, value in vgg16(weights=None).state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.needs_data
def test_blur_costs_more_than_nothing_and_gradients_survive_flat_images(real_data):
    weights = real_data / "weights" / "squeezenet_v1.1_notop_oihw.npz"
    distance = build_perceptual(SqueezenetEncoder(weights=weights))
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert distance.name == "perceptual-squeezenet1_1"
    assert distance(x, x) == 0
    assert distance(x, torch.nn.functional.avg_pool2d(x, 5, 1, 2)) > 0.001
    flat = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    distance(flat, x[:1]).backward()
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().sum() > 0


def test_lpips_is_the_package_with_the_backbone_of_the_file(vgg_file):
    distance = build_perceptual(LpipsVgg(weights=vgg_file))
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own = torch.load(vgg_file, weights_only=True)
    for name in reference.net.state_dict():
        _, number, kind = name.split(".")
        reference.net.get_parameter(name).data.copy_(own[f"features.{number}.{kind}"])
    torch.manual_seed(0)
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(distance(x, y), reference(x, y).mean())
    assert distance.name == "LPIPS-VGG"
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_refuses_a_file_of_something_else(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match="slice1"):
        build_perceptual(LpipsVgg(weights=tmp_path / "vgg.pth"))


def test_none_and_random_encoders():
    assert build_perceptual(NoPerceptual()) is None
    assert build_perceptual(TimmEncoder(name="test_resnet")).name == "perceptual-timm-test_resnet-random"
