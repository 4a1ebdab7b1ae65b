"""CompVis state dicts give the same numbers in diffusers' models as in a U-Net and autoencoder written apart."""

import pytest
import torch
from compvis_reference import CompVisAutoencoder, CompVisUNet, checkpoint, randomise
from diffusers import AutoencoderKL, UNet2DModel

from hdtrain.errors import CheckpointError
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.models.compvis import (
    autoencoder_architecture,
    autoencoder_weights,
    convert_autoencoder,
    convert_unet,
    unet_architecture,
    unet_weights,
)
from hdtrain.models.denoiser import build_denoiser

LDM4 = {"channels": 224, "multipliers": (1, 2, 3, 4), "attends": (False, True, True, True), "blocks": 2}
KL_F4 = {"channels": (128, 256, 512), "blocks": 2, "attends": (False,) * 3}


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def imported_unet(state: dict[str, torch.Tensor], head_channels: int) -> UNet2DModel:
    architecture = unet_architecture(state, head_channels)
    unet = UNet2DModel(**architecture)
    unet.load_state_dict(convert_unet(state, architecture, shapes(unet)))
    return unet.eval()


def imported_autoencoder(state: dict[str, torch.Tensor]) -> AutoencoderKL:
    architecture = autoencoder_architecture(state)
    vae = AutoencoderKL(**architecture)
    vae.load_state_dict(convert_autoencoder(state, architecture, shapes(vae)))
    return vae.eval()


@pytest.fixture(scope="module")
def unet() -> CompVisUNet:
    return randomise(CompVisUNet(32, (1, 2), (False, True), 2, 16), 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        {"multipliers": (1, 2, 3), "attends": (False, True, True), "blocks": 2, "head_channels": 32},
        {"multipliers": (1, 2), "attends": (True, True), "blocks": 1, "head_channels": 8, "latent_channels": 4},
        {"multipliers": (1, 1), "attends": (False, False), "blocks": 3, "head_channels": 16, "scale_shift": True},
    ],
)
def test_an_imported_unet_predicts_what_the_original_does(build):
    theirs = randomise(CompVisUNet(32, **build), 1)
    ours = imported_unet(theirs.state_dict(), build["head_channels"])
    z = torch.randn(2, build.get("latent_channels", 3), 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 871])
    expected = theirs(z, t)
    assert expected.std() > 0.3
    assert (ours(z, t).sample - expected).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        {"channels": (32, 64, 96), "blocks": 1, "attends": (False, False, False)},
        {"channels": (64, 32), "blocks": 2, "attends": (False, True), "latent_channels": 4},
    ],
)
def test_an_imported_autoencoder_encodes_and_decodes_as_the_original_does(build):
    theirs = randomise(CompVisAutoencoder(**build), 2)
    ours = imported_autoencoder(theirs.state_dict())
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = theirs.encode(x)
    posterior = ours.encode(x).latent_dist
    assert moments.std() > 0.3
    assert (torch.cat([posterior.mean, posterior.logvar], 1) - moments).abs().max() <= 1e-5
    mean = moments.chunk(2, dim=1)[0]
    assert (ours.decode(mean).sample - theirs.decode(mean)).abs().max() <= 1e-5


def test_every_tensor_of_ldm4_and_kl_f4_finds_its_place():
    with torch.device("meta"):
        theirs = CompVisUNet(**LDM4, head_channels=32).state_dict()
        architecture = unet_architecture(theirs, 32)
        ours = shapes(UNet2DModel(**architecture))
        first_stage = CompVisAutoencoder(**KL_F4).state_dict()
        kl_architecture = autoencoder_architecture(first_stage)
        kl = shapes(AutoencoderKL(**kl_architecture))
        assert ours == shapes(build_denoiser("ldm4", 3, 64))  # so a run of these presets can start from them
        assert kl == shapes(build_autoencoder("kl-f4", 256))
    converted = convert_unet(theirs, architecture, ours)
    assert sum(value.numel() for value in theirs.values()) == 274_056_163
    assert sum(value.numel() for value in converted.values()) == 274_056_163
    assert {name: value.shape for name, value in converted.items()} == ours
    converted = convert_autoencoder(first_stage, kl_architecture, kl)
    assert sum(value.numel() for value in converted.values()) == 22_351_280 + 32_960_783
    assert {name: value.shape for name, value in converted.items()} == kl


def test_diffusers_own_converter_puts_the_first_stage_where_we_do():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = randomise(CompVisAutoencoder((32, 64, 64), 2, (False,) * 3), 3).state_dict()
    architecture = autoencoder_architecture(state)
    expected = convert_ldm_vae_checkpoint({f"first_stage_model.{n}": v for n, v in state.items()}, architecture)
    ours = convert_autoencoder(state, architecture, shapes(AutoencoderKL(**architecture)))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_whole_checkpoint_gives_the_moving_average_unless_the_raw_weights_are_asked_for(unet):
    averaged = randomise(CompVisUNet(32, (1, 2), (False, True), 2, 16), 5)
    state = checkpoint(unet, CompVisAutoencoder(), 0.2, averaged)
    for ema, kind, model in ((True, "ema", averaged), (False, "raw", unet)):
        weights, found = unet_weights(state, ema)
        assert found == kind
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert unet_weights(checkpoint(unet, CompVisAutoencoder(), 0.2))[1] == "raw"
    assert unet_weights(unet.state_dict())[0].keys() == unet.state_dict().keys()
    first_stage = autoencoder_weights(state)
    assert first_stage.keys() == CompVisAutoencoder().state_dict().keys()


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "out.2.weight"), "out.2.weight is missing"),
        (lambda s: {**s, "label_emb.weight": torch.zeros(2, 2)}, "conditional (label_emb.weight)"),
        (lambda s: {**s, "extra.weight": torch.zeros(2)}, "1 of its tensors have no place"),
        (lambda s: {**s, "out.0.weight": torch.zeros(7)}, "out.0.weight has shape (7,), expected (32,)"),
        (lambda s: without(s, "input_blocks.5.1."), "the levels of its U-Net differ in length"),
        (lambda s: without(s, "input_blocks.2.0.in_layers"), "neither a residual block nor a strided convolution"),
    ],
)
def test_a_unet_of_another_build_is_refused_with_the_reason(unet, change, message):
    with pytest.raises(CheckpointError) as error:
        imported_unet(change(unet.state_dict()), 16)
    assert message in str(error.value)


def test_a_width_of_heads_that_does_not_fit_is_refused(unet):
    with pytest.raises(CheckpointError, match="head_channels: 48 does not divide 64 channels"):
        unet_architecture(unet.state_dict(), 48)


def test_what_holds_no_model_is_refused(unet):
    with pytest.raises(CheckpointError, match="holds no autoencoder of CompVis's: expected first_stage_model"):
        autoencoder_weights(unet.state_dict())
    with pytest.raises(CheckpointError, match=r"holds no U-Net .* found a\.weight"):
        unet_weights({"a.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"has no quant_conv\.weight"):
        autoencoder_architecture(without(CompVisAutoencoder().state_dict(), "quant_conv"))
