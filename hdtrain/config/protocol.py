"""Where HistoDiffusion's text and its released code disagree: both as settings, and how far a config is from them."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from hdtrain.config.base import Config
from hdtrain.config.load import get_dotted

Protocol = Literal["paper", "released_code"]
Settings = dict[str, Any]
"""Dotted key to value."""

_SCHEDULES: dict[Protocol, Settings] = {
    "paper": {"kind": "linear"},
    "released_code": {"kind": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155, "num_train_timesteps": 1000},
}
_BOTH: dict[str, Settings] = {
    "train-vae": {
        "preset": "kl-f4",
        "reader.resolution": 256,
        "batch.global_batch_size": 6,
        "optim.lr": 4.5e-6,
        "kl_weight": 6.25e-8,
    },
    "train-ldm": {
        "prediction": "epsilon",
        "class_conditional": False,
        "batch.global_batch_size": 4,
        "optim.lr": 5e-5,
        "ema.decay": 0.9999,
    },
    "train-classifier image": {
        "model.preset": "lae",
        "model.reader.resolution": 256,
        "batch.global_batch_size": 64,
        "optim.lr": 5e-5,
        "optim.weight_decay": 0.0,
    },
    "train-classifier latent": {"batch.global_batch_size": 32, "optim.lr": 5e-5},
    "train-classifier timm": {"batch.global_batch_size": 128, "optim.lr": 1e-4},
    "adapt-decoder": {
        "reader.resolution": 256,
        "reader.resize": "squash",
        "batch.global_batch_size": 4,
        "optim.lr": 5e-5,
        "classifier_weight": 1.0,
    },
    "sweep-guidance": {"solver.kind": "ddim"},
    "sample": {"solver.kind": "ddim"},
}
"""What both say (the paper's supplement, Table 2)."""

CONFLICTS: dict[str, dict[Protocol, Settings]] = {
    "train-vae": {"paper": {"reader.resize": "squash"}, "released_code": {"reader.resize": "crop"}},
    "train-ldm": {
        "paper": {"preset": "ldm4", "loss": "mse", "schedule": _SCHEDULES["paper"]},
        "released_code": {"preset": "histodiff", "loss": "l1", "schedule": _SCHEDULES["released_code"]},
    },
    "train-classifier image": {
        "paper": {"model.reader.resize": "squash"},
        "released_code": {"model.reader.resize": "crop"},
    },
    "train-classifier latent": {
        "paper": {"model.preset": "lae", "model.timesteps": "uniform", "model.schedule": _SCHEDULES["paper"]},
        "released_code": {
            "model.preset": "adm-half-unet",
            "model.timesteps": "zero",
            "model.schedule": _SCHEDULES["released_code"],
            "optim.weight_decay": 0.05,
            "optim.schedule": "linear",
        },
    },
    "train-classifier timm": {
        "paper": {"model.name": "vit_base_patch16_224", "model.reader.resize": "squash"},
        "released_code": {"model.name": "vit_small_patch16_224", "model.reader.resize": "crop"},
    },
    "sweep-guidance": {
        "paper": {"solver.steps": 200, "solver.eta": 0.0},
        "released_code": {"solver.steps": 50, "solver.eta": 1.0},
    },
    "sample": {
        "paper": {"guidance": 1.0, "solver.steps": 200, "solver.eta": 0.0},
        "released_code": {"guidance": 10.0, "solver.steps": 50, "solver.eta": 1.0},
    },
}
"""What they disagree on. Left out is what no one should repeat: the best epoch chosen on the test split, ᾱ looked up at
t//20, and a latent scale from the first batch of rank 0."""


class FollowsProtocol(Config):
    """A stage on which paper and released code disagree."""

    protocol: Protocol = "paper"
    """Whose settings the keys that are not given take, where paper and released code disagree."""

    stage_name: ClassVar[str]
    """The stage, as in `CONFLICTS`."""

    @classmethod
    def _case(cls, data: Any) -> str:
        """Key of the tables; a classifier's kind belongs to it."""
        model = data.get("model") if isinstance(data, dict) else None
        return f"{cls.stage_name} {model['kind']}" if isinstance(model, dict) and "kind" in model else cls.stage_name

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("protocol") != "released_code":
            return data
        filled = dict(data)
        for dotted, value in CONFLICTS.get(cls._case(data), {}).get("released_code", {}).items():
            _fill(filled, dotted.split("."), value)
        return filled

    def departures(self) -> list[str]:
        """Every setting that is not the protocol's: `key: ours (protocol's)`."""
        tree = self.model_dump(mode="json")
        case = self._case(tree)
        expected = _BOTH.get(case, {}) | CONFLICTS.get(case, {}).get(self.protocol, {})
        lines = []
        for dotted, value in expected.items():
            ours = get_dotted(tree, dotted)
            parts = value if isinstance(value, dict) else {"": value}
            for key, wanted in parts.items():
                got = ours[key] if key else ours
                if got != wanted:
                    lines.append(f"{dotted}{'.' * bool(key)}{key}: {got} ({wanted})")
        return lines


def _fill(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested key that is not there; mappings on the way are copied. What is no mapping is left for the schema."""
    first, *rest = keys
    if not rest:
        tree.setdefault(first, value)
        return
    inner = tree.get(first, {})
    if isinstance(inner, dict):
        tree[first] = dict(inner)
        _fill(tree[first], rest, value)
