"""The paper's protocol and the released code's: what a config becomes under each, and what it says it departs from."""

import pytest

from hdtrain.config.adaptation import AdaptDecoderConfig, TrainClassifierConfig
from hdtrain.config.load import validate
from hdtrain.config.protocol import CONFLICTS
from hdtrain.config.synthesis import SampleConfig, SweepGuidanceConfig
from hdtrain.config.training import TrainLdmConfig, TrainVaeConfig
from hdtrain.errors import ConfigError
from hdtrain.prepare import resolve

LDM = {"latents": "latents", "vae": "vae", "duration": {"images": 8}}
GUIDE = {"model": {"kind": "latent", "latents": "latents"}, "duration": {"images": 8}}
CASES = {
    "train-vae": (TrainVaeConfig, {"images": ["i"], "duration": {"images": 8}, "perceptual": {"kind": "none"}}),
    "train-ldm": (TrainLdmConfig, LDM),
    "train-classifier image": (
        TrainClassifierConfig,
        {"model": {"kind": "image", "images": ["i"]}, "duration": {"images": 8}},
    ),
    "train-classifier latent": (TrainClassifierConfig, GUIDE),
    "train-classifier timm": (
        TrainClassifierConfig,
        {"model": {"kind": "timm", "images": ["i"]}, "duration": {"images": 8}},
    ),
    "sweep-guidance": (
        SweepGuidanceConfig,
        {
            "denoiser": "d",
            "decoder": "v",
            "classifier": "c",
            "real": ["i"],
            "encoder": {"kind": "timm", "name": "resnet18"},
            "judge": "j",
        },
    ),
    "sample": (SampleConfig, {"denoiser": "d", "per_class": 1}),
}


@pytest.mark.parametrize("case", CONFLICTS)
@pytest.mark.parametrize("protocol", ["paper", "released_code"])
def test_every_conflict_is_settled_as_the_protocol_says(case, protocol):
    model, tree = CASES[case]
    config = validate(model, {**tree, "protocol": protocol}, "test")
    settled = {line.partition(":")[0] for line in config.departures()}
    assert not {dotted for dotted in CONFLICTS[case][protocol] if any(key.startswith(dotted) for key in settled)}
    other = config.model_copy(update={"protocol": "paper" if protocol == "released_code" else "released_code"})
    assert other.departures() != config.departures()


def test_a_denoiser_of_the_released_code_is_its_own():
    config = validate(TrainLdmConfig, {**LDM, "protocol": "released_code"}, "test")
    assert (config.preset, config.loss, config.schedule.kind) == ("histodiff", "l1", "scaled_linear")
    assert (config.schedule.beta_start, config.schedule.beta_end) == (0.0015, 0.0155)
    assert config.departures() == []


def test_what_is_given_stays_and_is_listed_as_a_departure():
    given = {"protocol": "released_code", "preset": "tiny", "optim": {"lr": 1e-3}}
    config = validate(TrainLdmConfig, {**LDM, **given}, "test")
    assert (config.preset, config.loss) == ("tiny", "l1")
    assert config.departures() == ["optim.lr: 0.001 (5e-05)", "preset: tiny (histodiff)"]


def test_a_block_given_in_part_is_completed_by_the_protocol():
    config = validate(TrainClassifierConfig, {**GUIDE, "protocol": "released_code", "optim": {"lr": 2e-5}}, "test")
    assert (config.optim.lr, config.optim.weight_decay, config.optim.schedule) == (2e-5, 0.05, "linear")


def test_the_resolved_config_means_the_same_when_it_is_read_again(tmp_path):
    config = resolve(TrainClassifierConfig, {**GUIDE, "protocol": "released_code"}, "test")
    again = validate(TrainClassifierConfig, config.model_dump(mode="json"), "test")
    assert again == config


def test_the_released_code_has_no_decoder_to_adapt():
    tree = {"images": ["i"], "vae": "v", "classifier": "c", "duration": {"images": 8}, "perceptual": {"kind": "none"}}
    with pytest.raises(ConfigError, match="does not fine-tune the decoder"):
        validate(AdaptDecoderConfig, {**tree, "protocol": "released_code"}, "test")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match="'paper' or 'released_code'"):
        validate(TrainLdmConfig, {**LDM, "protocol": "code"}, "test")
