"""Classifiers: shapes, the timestep, dropout, timm's normalisation and sizes, and loading what was published."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file

from hdtrain.config.presets import CLASSIFIERS
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.classifier import EncoderClassifier, build_classifier, load_classifier, weights_file
from hdtrain.models.classifiers.encoder import dropout_mask
from hdtrain.models.classifiers.timm_model import check_timm


@pytest.mark.parametrize("preset", CLASSIFIERS)
@pytest.mark.parametrize(("kind", "channels", "size"), [("image", 3, 64), ("latent", 4, 32)])
def test_every_preset_gives_logits_features_and_maps(preset, kind, channels, size):
    with torch.device("meta"):
        model = EncoderClassifier(preset, kind, ["a", "b", "c"], channels, size)
        x, t = torch.empty(2, channels, size, size), torch.zeros(2, dtype=torch.int64)
        assert model(x, t).shape == (2, 3)
        assert model.features(x, t).shape == (2, model.head.in_features)
        halvings = len(CLASSIFIERS[preset].image_channels) - 1
        sizes = [size // 2**level for level in range(1, halvings + 1)]
        assert [maps.shape[-1] for maps in model.feature_maps(x, t)] == [*sizes, sizes[-1]]


def test_the_half_unet_has_the_51_million_parameters_of_the_released_code():
    with torch.device("meta"):
        model = EncoderClassifier("adm-half-unet", "latent", list("abcdefghi"), 3, 64)
    assert sum(p.numel() for p in model.parameters()) == 51_453_961
    attends = [hasattr(block, "attentions") for block in model.down]
    assert [2**level for level, yes in enumerate(attends) if yes] == [8, 16]


def test_the_half_unets_residual_branches_begin_at_zero_and_are_trained():
    torch.manual_seed(0)
    model = EncoderClassifier("adm-half-unet-tiny", "latent", ["a", "b"], 3, 8)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    untold = model(z, torch.zeros_like(t))
    torch.testing.assert_close(model(z, t), untold)  # the timestep comes in through the branches
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(z, t), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert not torch.allclose(model(z, t), model(z, torch.zeros_like(t)), atol=1e-6)


def test_a_size_that_the_half_unet_cannot_halve_is_refused():
    with pytest.raises(ConfigError, match="must be a multiple of 32, got latents of 48"):
        EncoderClassifier("adm-half-unet", "latent", ["a", "b"], 3, 48)


def test_the_latent_classifier_sees_the_timestep_and_the_image_classifier_has_none():
    torch.manual_seed(0)
    latent = EncoderClassifier("lae-tiny", "latent", ["a", "b"], 3, 8)
    z = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(latent(z, torch.tensor([1])), latent(z, torch.tensor([900])))
    for preset in ("lae-tiny", "adm-half-unet-tiny"):
        names = [name for name, _ in EncoderClassifier(preset, "image", ["a", "b"], 3, 8).named_modules()]
        assert not any("time" in name for name in names)


def test_dropout_is_of_the_pooled_features_and_a_given_mask_takes_its_place():
    torch.manual_seed(0)
    model = EncoderClassifier("lae-tiny", "image", ["a", "b"], 3, 8, dropout=0.5)
    x = torch.randn(4, 3, 8, 8)
    assert not torch.allclose(model(x), model(x)), "two passes in training mode draw the same"
    mask = dropout_mask(torch.rand(4, model.head.in_features), 0.5)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(model(x, None, mask), model.head(model.features(x) * mask))
    model.eval()
    torch.testing.assert_close(model(x), model.head(model.features(x)))


def test_a_share_of_the_features_is_dropped_and_the_rest_scaled_up():
    mask = dropout_mask(torch.rand(1000, 100, generator=torch.Generator().manual_seed(0)), 0.2)
    assert float((mask == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)


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


@pytest.mark.parametrize(
    ("name", "resolution", "said"),
    [
        ("vit_tiny_patch16_224", 225, "it sees patches of 16 px, and 225 is no multiple of that"),
        ("maxvit_tiny_tf_224", 200, "takes no images of 200 px .*it was made for 224 px"),
        ("vit_base_patch16_225", 224, "timm knows no model 'vit_base_patch16_225'; near it: vit_base_patch16_224"),
    ],
)
def test_what_a_timm_model_cannot_take_is_told_before_anything_is_computed(name, resolution, said):
    with pytest.raises(ConfigError, match=said):
        check_timm(name, resolution)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "resnet18"])
def test_timm_models_of_one_size_are_built_for_ours(name):
    check_timm(name, 256)


def test_a_published_classifier_comes_back_frozen_with_its_classes(chain):
    directory = chain["phi"]
    model = load_classifier(directory)
    saved = load_file(weights_file(directory, 0))
    assert model.classes == read_manifest(directory).classes == ["dots", "stripes"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.temperature == 1.0, "nothing was calibrated"
    with pytest.raises(ManifestError, match="no classifier of seed 7; trained seeds: 0"):
        load_classifier(directory, 7)


def test_a_classifier_published_before_dropout_and_temperature_were_known_still_loads(chain, tmp_path):
    shutil.copytree(chain["phi"], tmp_path / "phi")
    manifest = json.loads((tmp_path / "phi/manifest.json").read_text())
    for name in ("seed_steps", "chosen_step", "stopped_early"):
        del manifest["info"][name]
    assert "dropout" not in manifest["info"]["architecture"]
    (tmp_path / "phi/manifest.json").write_text(json.dumps(manifest))
    model = load_classifier(tmp_path / "phi")
    assert (model.temperature, model.dropout.p) == (1.0, 0.0)
