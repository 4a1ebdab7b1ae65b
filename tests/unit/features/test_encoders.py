"""Frozen encoders: right weights or a clear refusal, the same features every time, gradients to the image."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from hdtrain.config.training import SqueezenetEncoder, TimmEncoder
from hdtrain.errors import WeightsError
from hdtrain.features.encoders import build_encoder
from hdtrain.formats.atomic import sha256_file

SMALL = "test_resnet.r160_in1k"


def _images(n=2, size=40):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


@pytest.fixture
def squeezenet_weights(real_data):
    return real_data / "weights" / "squeezenet_v1.1_notop_oihw.npz"


@pytest.mark.needs_data
def test_squeezenet_sees_tissue(real_data, squeezenet_weights):
    """Real weights in the right order put patches of one tissue nearer together than patches of two."""
    from PIL import Image

    encoder = build_encoder(SqueezenetEncoder(weights=squeezenet_weights))
    folders = [real_data / "kather2016_crc8" / "train" / name for name in ("04_LYMPHO", "07_ADIPOSE")]
    images = [np.asarray(Image.open(path)) for folder in folders for path in sorted(folder.iterdir())[:8]]
    features = torch.nn.functional.normalize(encoder.embed(np.stack(images)))
    same = (features[:8] @ features[:8].T).mean() + (features[8:] @ features[8:].T).mean()
    assert features.shape == (16, encoder.dim)
    assert same / 2 - (features[:8] @ features[8:].T).mean() > 0.05
    assert encoder.weights_sha256 == sha256_file(squeezenet_weights)


@pytest.mark.needs_data
@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_squeezenet_refuses_damaged_weights_by_name(tmp_path, squeezenet_weights, damage):
    arrays = dict(np.load(squeezenet_weights))
    arrays["fire4/expand3x3.w"] = arrays["fire4/expand3x3.w"][:5]
    if damage == "missing":
        del arrays["fire4/expand3x3.w"]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(WeightsError, match=r"fire4/expand3x3\.w"):
        build_encoder(SqueezenetEncoder(weights=tmp_path / "w.npz"))


def test_a_text_file_is_not_squeezenet(tmp_path):
    (tmp_path / "w.npz").write_text("no archive")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_encoder(SqueezenetEncoder(weights=tmp_path / "w.npz"))


def test_random_timm_weights_are_the_same_in_every_process_and_say_so():
    torch.manual_seed(1)
    first = build_encoder(TimmEncoder(name=SMALL)).embed(_images())
    torch.manual_seed(2)
    second = build_encoder(TimmEncoder(name=SMALL))
    assert torch.equal(first, second.embed(_images()))
    assert second.name.endswith("-random")
    assert first.shape == (2, second.dim)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_weights_come_from_a_local_file_and_the_head_may_be_there(tmp_path, suffix):
    model = timm.create_model(SMALL, pretrained=False, num_classes=7).eval()
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    encoder = build_encoder(TimmEncoder(name=SMALL, weights=path))
    x = torch.full((1, 3, 160, 160), 200.0)
    expected = model.forward_head(model.forward_features((x / 255 - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(encoder.pooled(x), expected)
    assert not encoder.name.endswith("-random")


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        build_encoder(TimmEncoder(name=SMALL, weights=tmp_path / "w.safetensors"))


def test_pickled_code_is_refused(tmp_path):
    torch.save({"model": timm.create_model(SMALL, pretrained=False)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="state dict"):
        build_encoder(TimmEncoder(name=SMALL, weights=tmp_path / "w.pth"))


@pytest.mark.parametrize("name", [SMALL, "test_vit"])
def test_feature_maps_pass_gradients_to_the_image_but_not_to_the_weights(name):
    encoder = build_encoder(TimmEncoder(name=name)).train()
    x = torch.rand(1, 3, 160, 160) * 2 - 1
    x.requires_grad_()
    maps = encoder.feature_maps(x)
    sum(m.square().mean() for m in maps).backward()
    assert not encoder.training
    assert all(m.ndim == 4 for m in maps)
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())
