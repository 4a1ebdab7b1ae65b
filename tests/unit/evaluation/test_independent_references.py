"""Which arms an arm is held against."""

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.evaluation.arms import references_of

ARMS = {
    "real": ("", False, 0),
    "augmented": ("", False, 0),
    "full 50 %": ("full", True, 0.5),
    "full 100 %": ("full", True, 1),
    "plain decoder 100 %": ("plain decoder", True, 1),
    "random 100 %": ("random", True, 1),
    "full 100 % and augmented": ("full", True, 1),
}


def _references(name):
    arms = {
        arm: {"classifier": "c", "series": series, **({"synthetic": "s"} if synthetic else {})}
        for arm, (series, synthetic, _) in ARMS.items()
    }
    encoder = {"kind": "timm", "name": "resnet18"}
    config = EvaluateConfig(test="t", train="r", arms=arms, baseline="real", encoder=encoder)
    return references_of(name, config, {arm: ratio for arm, (_, _, ratio) in ARMS.items()})


def test_the_baseline_is_held_against_none_and_controls_against_it():
    assert _references("real") == []
    assert _references("augmented") == ["real"]


def test_synthetic_arms_are_held_against_augmentation_and_their_counterparts_of_other_series():
    assert _references("full 50 %") == ["real", "augmented", "full 100 % and augmented"]
    assert _references("full 100 %") == [
        "real", "augmented", "plain decoder 100 %", "random 100 %", "full 100 % and augmented",
    ]  # fmt: skip
    assert "full 100 %" in _references("random 100 %")
