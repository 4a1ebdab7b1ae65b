"""Classifiers: shapes, the timestep, timm's normalisation, and loading what was published."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from hdtrain.config.presets import CLASSIFIERS
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.classifier import EncoderClassifier, build_classifier, load_classifier, weights_file


@pytest.mark.parametrize("preset", CLASSIFIERS)
@pytest.mark.parametrize(("kind", "channels", "size"), [("image", 3, 64), ("latent", 4, 16)])
def test_every_preset_gives_logits_features_and_maps(preset, kind, channels, size):
    with torch.device("meta"):
        model = EncoderClassifier(preset, kind, ["a", "b", "c"], channels, size)
        x, t = torch.empty(2, channels, size, size), torch.zeros(2, dtype=torch.int64)
        assert model(x, t).shape == (2, 3)
        assert model.features(x, t).shape == (2, model.head.in_features)
        assert [maps.shape[-1] for maps in model.feature_maps(x, t)] == [size // 2, size // 4, size // 4]


def test_the_latent_classifier_sees_the_timestep_and_the_image_classifier_has_none():
    torch.manual_seed(0)
    latent = EncoderClassifier("lae-tiny", "latent", ["a", "b"], 3, 8)
    z = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(latent(z, torch.tensor([1])), latent(z, torch.tensor([900])))
    assert not any(
        "time" in name for name, _ in EncoderClassifier("lae-tiny", "image", ["a", "b"], 3, 8).named_modules()
    )


def test_a_timm_model_gets_its_own_normalisation_from_images_in_minus_one_to_one():
    torch.manual_seed(0)
    model = build_classifier({"name": "test_resnet", "classes": ["a", "b"], "resolution": 32}).eval()
    x = torch.rand(2, 3, 32, 32)
    config = timm.data.resolve_data_config({}, model=model.model)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(model(2 * x - 1), model.model((x - mean) / std))
    assert model.feature_maps(x)[0].ndim == 4


def test_tokens_are_not_feature_maps():
    model = build_classifier({"name": "test_vit", "classes": ["a", "b"], "resolution": 32})
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(ManifestError, match="tokens, not feature maps"):
        model.feature_maps(torch.zeros(1, 3, 32, 32))


def test_a_published_classifier_comes_back_frozen_with_its_classes(chain):
    directory = chain["phi"]
    model = load_classifier(directory)
    saved = load_file(weights_file(directory, 0))
    assert model.classes == read_manifest(directory).classes == ["dots", "stripes"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ManifestError, match="no classifier of seed 7; trained seeds: 0"):
        load_classifier(directory, 7)
