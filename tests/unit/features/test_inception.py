"""Inception-2015: the features of torch-fidelity, from either port, under the right name, or a clear refusal."""

import numpy as np
import pytest
import torch
import torchvision
from random_inception import (  # noqa: F401
    inception_file,
    inception_script,
    pil_float,
    random_network,
    save_script,
    two_tissues,
)
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from hdtrain.config.training import InceptionEncoder
from hdtrain.errors import WeightsError
from hdtrain.features.encoders import build_encoder
from hdtrain.features.resize import resize_tensorflow
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.weights_registry import INCEPTION_PORTS


def build(path, resize="clean"):
    return build_encoder(InceptionEncoder(weights=path, resize=resize))


@pytest.mark.needs_data
def test_features_are_those_of_torch_fidelity_from_the_pixels_on(inception_file, two_tissues):  # noqa: F811
    images = two_tissues[0][:3]
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))[0]
    torch.testing.assert_close(build(inception_file, "tensorflow").embed(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.needs_data
def test_the_clean_resize_is_pils_in_float_and_moves_the_features(inception_file, two_tissues):  # noqa: F811
    images, encoder = two_tissues[0][:2], build(inception_file)
    features = encoder.embed(images)
    resized = torch.from_numpy(np.stack([pil_float(image) for image in images])).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, encoder.net((resized - 128) / 128), rtol=1e-5, atol=1e-5)
    other = build(inception_file, "tensorflow").embed(images)
    assert (features - other).abs().max() > 100 * 1e-5


@pytest.mark.parametrize(("height", "width"), [(150, 150), (299, 256), (512, 301), (7, 1)])
def test_the_other_resize_is_tensorflows(height, width):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8))
    theirs = interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
    )
    torch.testing.assert_close(resize_tensorflow(images, 299), theirs, rtol=0, atol=1e-4)


def test_the_torchscript_port_gives_the_same_features_every_time(inception_file, inception_script):  # noqa: F811
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    scripted = build(inception_script)
    first = scripted.embed(images)
    assert first.shape == (1, 2048)
    torch.testing.assert_close(first, build(inception_file).embed(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(scripted.embed(images), first) for _ in range(2))


def test_only_the_usual_weights_may_be_called_fid(inception_file, monkeypatch):  # noqa: F811
    digest = sha256_file(inception_file)
    random = build(inception_file)
    assert random.weights_sha256 == digest
    assert random.metric_name("FD") == f"FD-inception-{digest[:8]}"
    assert random.metric_name("KD") == f"KD-inception-{digest[:8]}"
    monkeypatch.setitem(INCEPTION_PORTS, digest, "pytorch-fid")  # as if these were they
    usual, other_resize = build(inception_file), build(inception_file, "tensorflow")
    names = [usual.metric_name(kind) for kind in ("FD", "KD", "FDinf", "FDpca5")]
    assert names == ["FID", "KID", "FIDinf", "FDpca5-inception-pytorch-fid"]
    assert other_resize.metric_name("FD") == "FID"
    assert usual.resize != other_resize.resize
    assert usual.name != other_resize.name  # features are cached under it


def test_a_file_without_counters_of_batches_loads(inception_file, tmp_path):  # noqa: F811
    state = torch.load(inception_file)
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, tmp_path / "old.pth")
    assert build(tmp_path / "old.pth").dim == 2048


class Layers(torch.nn.Module):
    """Gives `dim` numbers an image."""

    def __init__(self, dim=10):
        super().__init__()
        self.last = torch.nn.Linear(3, dim)

    def forward(self, x):
        return self.last(x.mean(dim=(2, 3)))


def torchvisions_own(path):
    torch.save(torchvision.models.inception_v3(weights=None, init_weights=False).state_dict(), path)


def resnet(path):
    torch.save(torchvision.models.resnet18().state_dict(), path)


def script_of_other_size(path):
    save_script(Layers(), path)


def script_without_layers(path):
    torch.jit.script(Layers(2048)).save(path)


def text(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (torchvisions_own, r"not the weights of Inception2015: unexpected AuxLogits"),
        (resnet, r"not the weights of Inception2015: missing Conv2d_1a_3x3"),
        (script_of_other_size, r"not the TorchScript of Inception: .*expected NVIDIA's"),
        (script_without_layers, r"this TorchScript has no `layers`; expected NVIDIA's"),
        (text, r"is not a plain state dict|cannot be read"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(tmp_path, write, message):
    write(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message) as refused:
        build(tmp_path / "w.pth")
    assert "w.pth" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("port", ["inception_file", "inception_script"])
@pytest.mark.parametrize("share", [0.99, 0.3])
def test_a_file_that_is_cut_off_is_refused_in_one_line(tmp_path, request, port, share):
    content = request.getfixturevalue(port).read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be read") as refused:
        build(tmp_path / "w.pth")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        build(tmp_path / "missing.pth")


def test_random_weights_give_features_that_neither_fade_nor_grow():
    with torch.no_grad():
        features = random_network()(torch.rand(2, 3, 299, 299) * 2 - 1)
    assert 0.01 < features.std() < 100
