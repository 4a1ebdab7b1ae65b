"""What one seed's training came to: kept in its weights file, gathered into the manifest."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hdtrain.distributed.world import World
from hdtrain.training.calibration import at_bound, calibrate
from hdtrain.training.classifier import ClassifierTask, LatentClassifierTask

KEY = "hdtrain"


@dataclass(frozen=True)
class Outcome:
    """Of one seed."""

    steps: int
    """Really made."""
    chosen_step: int
    """Whose weights are published."""
    stopped_early: bool
    validation: dict[str, float] = field(default_factory=dict)
    """Figures of the published weights on the validation set; empty without one."""
    temperature: float | None = None
    calibration: dict[str, float] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """For the header of the weights file."""
        return {KEY: json.dumps(asdict(self))}

    @classmethod
    def read(cls, weights: Path) -> "Outcome":
        """From a weights file's header."""
        with safe_open(weights, "pt") as file:
            return cls(**json.loads(file.metadata()[KEY]))


def measure(task: ClassifierTask, model: Any, num_steps: int) -> Outcome:
    """What `task`'s training, which is over, came to with `model` as the weights to publish. A collective."""
    choice, fixed = task.choice, task.fixed
    if choice is None or fixed is None:
        return Outcome(num_steps, num_steps, False)
    figures = {name.removeprefix("validation/"): value for name, value in fixed.figures(model).items()}
    made = choice.steps_made(num_steps), choice.chosen_step(num_steps), choice.ended
    if isinstance(task, LatentClassifierTask):
        return Outcome(*made, figures)
    assert fixed.last is not None
    temperature, calibration = calibrate(fixed.last)
    if at_bound(temperature) and World.from_environment().is_main:
        print(
            f"warning: the temperature is {temperature:.3g}, the end of what is looked at: on the validation images "
            "the classifier is always right, or no better than chance; its probabilities say little"
        )
    return Outcome(*made, figures, temperature, calibration)


def gather(outcomes: dict[int, Outcome]) -> dict[str, Any]:
    """The manifest's `info`, by seed; `steps` is that of the seed that made most."""
    seeds = {str(seed): outcome for seed, outcome in outcomes.items()}
    info: dict[str, Any] = {"steps": max(outcome.steps for outcome in seeds.values())}
    info["seed_steps"] = {seed: outcome.steps for seed, outcome in seeds.items()}
    info["chosen_step"] = {seed: outcome.chosen_step for seed, outcome in seeds.items()}
    info["stopped_early"] = {seed: outcome.stopped_early for seed, outcome in seeds.items()}
    for name in ("validation", "temperature", "calibration"):
        found = {seed: getattr(outcome, name) for seed, outcome in seeds.items() if getattr(outcome, name)}
        if found:
            info[name] = found
    return info
