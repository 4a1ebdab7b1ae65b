"""Parents and input files are found wherever they stand in a config."""

from pathlib import Path

from hdtrain.config.base import InputFile, InputTree, Kinds, references
from hdtrain.config.load import validate
from hdtrain.config.shards import ShardConfig
from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.config.training import TrainVaeConfig


def found(config) -> dict[str, tuple[str, object]]:
    return {r.dotted: (str(r.path), getattr(r.marker, "kinds", r.marker)) for r in references(config)}


def test_references_in_lists_unions_and_mappings():
    vae = {
        "images": ["a", "b"],
        "duration": {"images": 1},
        "perceptual": {"kind": "timm", "name": "resnet18", "weights": "w.safetensors"},
    }
    assert found(validate(TrainVaeConfig, vae, "x")) == {
        "images.0": ("a", ("images",)),
        "images.1": ("b", ("images",)),
        "perceptual.weights": ("w.safetensors", InputFile()),
    }
    evaluate = {
        "test": "t",
        "train": "r",
        "arms": {"real": {"classifier": "c"}, "more": {"classifier": "d", "synthetic": "s"}},
        "baseline": "real",
        "encoder": {"kind": "classifier", "classifier": "e"},
    }
    assert list(found(validate(EvaluateConfig, evaluate, "x"))) == [
        "test",
        "train",
        "arms.real.classifier",
        "arms.more.classifier",
        "arms.more.synthetic",
        "encoder.classifier",
    ]


def test_raw_sources_are_no_parents_and_absent_parents_no_references():
    assert found(validate(ShardConfig, {"sources": [{"path": "raw"}]}, "x")) == {"sources.0.path": ("raw", InputTree())}
    vae = {"images": ["a"], "duration": {"images": 1}, "perceptual": {"kind": "timm", "name": "n", "weights": None}}
    assert [r.marker for r in references(validate(TrainVaeConfig, vae, "x"))] == [Kinds(("images",))]
    assert [r.path for r in references(validate(TrainVaeConfig, vae, "x"))] == [Path("a")]
