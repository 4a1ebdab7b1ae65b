"""FLOPs, parameters and activations: the published numbers, and what a real pass holds."""

import copy

import pytest
import torch
from torch import nn

from hdtrain.config.training import AdversarialConfig, NoPerceptual, TimmEncoder, TrainVaeConfig
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.models.classifier import build_classifier
from hdtrain.models.denoiser import build_denoiser
from hdtrain.training.costs import Costs, LiveBytes, Network, forward_flops, make_inputs, make_networks, training_pass
from hdtrain.training.workload import costs_of


def giga(flops: float) -> str:
    return f"{flops / 1e9:.1f}"


def diffusion(preset: str, size: int) -> Costs:
    with torch.device("meta"):
        inputs = torch.empty(1, 3, size, size), torch.zeros(1, dtype=torch.int64)
        return Costs((Network("denoiser", build_denoiser(preset, 3, size), inputs, engine="denoiser"),), 3)


def test_ldm4_has_the_parameters_and_flops_of_the_published_model():
    costs = diffusion("ldm4", 64)
    assert costs.trained == {"denoiser": 274_056_163}
    assert giga(costs.networks[0].forward_flops) == "202.4"
    assert giga(costs.training_flops()) == "607.2"


def test_kl_f4_has_the_flops_of_the_published_autoencoder():
    with torch.device("meta"):
        vae = build_autoencoder("kl-f4", 256)
        x, z = torch.empty(1, 3, 256, 256), torch.empty(1, 3, 64, 64)
    assert giga(forward_flops(nn.Sequential(vae.encoder, vae.quant_conv), x)) == "345.4"
    assert giga(forward_flops(nn.Sequential(vae.post_quant_conv, vae.decoder), z)) == "670.6"


def test_vit_b_16_has_the_flops_of_the_published_model():
    classes = [str(i) for i in range(9)]
    with torch.device("meta"):
        vit = build_classifier({"name": "vit_base_patch16_224", "classes": classes, "resolution": 224})
    assert giga(forward_flops(vit, torch.empty(1, 3, 224, 224))) == "35.1"


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_fused_attention_is_counted_as_its_two_matrix_products():
    heads, tokens, width = 3, 50, 16
    assert forward_flops(Attention(), torch.empty(2, heads, tokens, width)) == 2 * heads * 2 * 2 * tokens**2 * width


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = copy.deepcopy(module.state_dict())
    assert forward_flops(module, torch.ones(5, 3, 8, 8)) == 5 * 6 * 6 * 4 * 3 * 9 * 2
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_holds_the_activations_that_were_predicted(checkpointing):
    costs, num_images = diffusion("tiny", 16), 6

    def make(shape, dtype):
        return torch.zeros(shape, dtype=dtype)

    modules = make_networks(costs.networks, make, "fp32", checkpointing)
    inputs = make_inputs(costs.networks, make, "fp32", num_images)
    parameters = list(modules[0].parameters())
    for p in parameters:
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveBytes(parameters) as live:
        training_pass(costs.networks, modules, inputs)
    assert costs.activation_bytes("fp32", checkpointing, num_images) == pytest.approx(live.peak, rel=0.06)


def test_bf16_and_checkpointing_hold_less():
    costs = diffusion("tiny", 16)
    plain = costs.activation_bytes("fp32", False, 8)
    assert costs.activation_bytes("bf16", False, 8) == pytest.approx(plain / 2, rel=0.05)
    assert costs.activation_bytes("fp32", True, 8) < 0.6 * plain


def vae_config(perceptual, **adversarial) -> TrainVaeConfig:
    return TrainVaeConfig(
        images=["images"],
        preset="kl-f4-tiny",
        reader={"resolution": 64},
        duration={"images": 1000},
        perceptual=perceptual,
        adversarial=AdversarialConfig(**adversarial),
    )


def no_manifest(path):
    raise AssertionError(f"asked for the manifest of {path}")


def test_the_discriminator_counts_from_the_image_on_at_which_it_joins():
    costs = costs_of(vae_config(NoPerceptual(), start_images=250), no_manifest)
    flops = {network.name: network.training_flops for network in costs.networks}
    assert list(costs.trained) == ["autoencoder", "discriminator"]
    assert costs.training_flops(249) == flops["autoencoder"]
    assert costs.training_flops(250) == sum(flops.values())
    later = costs.training_flops(250) - costs.training_flops(0)
    assert costs.mean_training_flops(1000) == pytest.approx(flops["autoencoder"] + 0.75 * later)
    assert "discriminator" not in costs_of(vae_config(NoPerceptual(), weight=0.0), no_manifest).trained


def test_a_perceptual_network_counts_two_images_and_the_gradient_of_one():
    encoder = TimmEncoder(name="resnet18")
    network = next(n for n in costs_of(vae_config(encoder), no_manifest).networks if n.role == "compares")
    with torch.device("meta"):
        x = torch.empty(1, 3, 64, 64)
    (image,) = network.module.encoder.feature_maps(x)[-1:]
    assert image.shape[0] == 1
    assert network.training_flops == 1.5 * network.forward_flops
    assert network.engine is None


def test_building_the_networks_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    costs_of(vae_config(TimmEncoder(name="resnet18")), no_manifest)
    assert torch.equal(torch.rand(3), expected)
