"""`solvers.json`: what images look like by every solver, the solver that was chosen, and by whom; `speed.json`.

Seconds differ from run to run, all else does not: so they lie in a file of their own, which is no part of what the
sweep publishes.
"""

from typing import Any, Literal

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import VersionedFile


class SolverResult(Config):
    """The images of one solver."""

    name: str
    solver: dict[str, Any]
    """Its whole config."""
    num_images: int
    frechet: Metric
    """Distance from the real images."""
    difference: Metric
    """That distance less the reference's; the interval is of the difference, from paired images."""
    pixel_difference: Metric
    """Mean absolute difference from the reference's images, 0..255."""
    denoiser_evaluations: float
    """An image; classifier-free guidance takes two a step."""
    classifier_evaluations: float
    """Forward passes of ϕ with their gradients, an image."""
    passed: bool
    """The larger end of the interval, without its sign, is within the limit."""

    @property
    def upper(self) -> float:
        """The larger end of the difference's interval, without its sign."""
        return max(map(abs, self.difference.interval or (self.difference.value,)))


class SolverSweepResults(VersionedFile):
    """The whole file."""

    STAGE = "sweep-solvers"
    WHAT = "solver sweep"
    version: int = 1
    metric: str
    """What the Fréchet distance is called: `FID` or `FD-ENCODER`."""
    solvers: list[SolverResult]
    """The reference first, then in the config's order."""
    choice: str
    chosen_by: Literal["rule", "user"]
    rule_choice: str
    """What the rule says, whoever chose."""
    reason: str
    """Why, in words."""
    tolerance: float
    limit: float
    """`tolerance` times the reference's Fréchet distance."""
    classes: list[str] = Field(default_factory=list)
    encoder: dict[str, Any]
    """name, weights (sha256), resize, resolution, image_resolution."""
    real: dict[str, str]
    """Identities of the real images' manifests, by folder."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Guidance, images a class, groups, seed: whatever another person needs to repeat the figures."""
    warnings: list[str] = Field(default_factory=list)

    @property
    def reference(self) -> SolverResult:
        """What the others are held against."""
        return self.solvers[0]

    @property
    def chosen(self) -> SolverResult:
        """The solver that was chosen."""
        return next(solver for solver in self.solvers if solver.name == self.choice)


class SolverSpeed(Config):
    """Of one solver, on one rank."""

    images_per_sec: float
    """`batch_size` over the median seconds of a batch, decoding included."""
    times_faster: float
    """Than the reference."""
    batches: int


class Speeds(VersionedFile):
    """The whole of `speed.json`."""

    STAGE = "sweep-solvers"
    WHAT = "speeds"
    version: int = 1
    device: str
    """On which the last of it was measured."""
    batch_size: int
    solvers: dict[str, SolverSpeed]
