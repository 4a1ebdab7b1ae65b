"""Config of the stage `sweep-solvers`: the same images by several solvers, and the cheapest that is good enough."""

from typing import Literal

from pydantic import Field, model_validator

from hdtrain.config.base import (
    AutoencoderParent,
    ClassifierParent,
    Config,
    DenoiserParent,
    ImagesParent,
    SweepParent,
)
from hdtrain.config.synthesis import SampleConfig, SolverConfig, check_guidance
from hdtrain.config.training import EncoderConfig


class SweepSolversConfig(Config):
    """The same images by a reference solver and by faster ones, scored, and one chosen: `hdtrain sweep-solvers`."""

    denoiser: DenoiserParent
    decoder: AutoencoderParent | None = None
    """As in `sample`, like all keys down to `precision`: give what the mass generation is to have."""
    classifier: ClassifierParent | None = None
    """ϕ."""
    guidance: float = Field(1.0, ge=0)
    """g, of ϕ."""
    guidance_from: SweepParent | None = None
    classifier_free: float | None = Field(None, ge=0)
    clip_latents: float | None = Field(None, gt=0)
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    real: list[ImagesParent] = Field(min_length=1)
    """Real images, which the generated ones are held against."""
    encoder: EncoderConfig
    per_class: int = Field(200, ge=2)
    """Images a class and solver, of the same noise for every solver; without classes, images in all."""
    reference: SolverConfig = SolverConfig()
    """What the others are held against: slow, and as good as the denoiser is."""
    solvers: list[SolverConfig] = Field(
        [
            SolverConfig(steps=50),
            SolverConfig(kind="dpm-solver++", steps=20),
            SolverConfig(kind="unipc", steps=20),
            SolverConfig(kind="unipc", steps=10),
        ],
        min_length=1,
    )
    tolerance: float = Field(0.05, ge=0)
    """By how much of the reference's Fréchet distance a solver's may differ from it, at the far end of the interval of
    the difference. 0.05 is 0.15 of an FID of 3 (LDM-4 on LSUN-Bedroom: 2.95 with DDIM-200, 3.07 to 3.16 with 20
    evaluations)."""
    groups: int = Field(20, ge=2)
    """Into how many the images are divided for the interval: each is left out once (delete-a-group jackknife)."""
    choice: str | None = None
    """Name of a solver, as `unipc-20`, chosen by you after looking; None: by rule, the fewest evaluations of the
    denoiser among those within the tolerance."""
    batch_size: int = Field(32, ge=1)
    resolution: int = Field(256, ge=8)
    seed: int = Field(0, ge=0)

    @property
    def by_name(self) -> dict[str, SolverConfig]:
        """The reference, then the others."""
        return {solver.name: solver for solver in [self.reference, *self.solvers]}

    @property
    def data_sets(self) -> list[str]:
        """The images of every solver."""
        return list(self.by_name)

    @property
    def publishes(self) -> str | None:
        """Besides its data sets."""
        return "solver-sweep"

    def sample_config(self, solver: SolverConfig) -> SampleConfig:
        """What `sample` would have: with this seed its first images are these.

        Shards hold one batch, so that there are enough of them for every rank.
        """
        return SampleConfig(
            denoiser=self.denoiser,
            decoder=self.decoder,
            classifier=self.classifier,
            guidance=self.guidance,
            guidance_from=self.guidance_from,
            classifier_free=self.classifier_free,
            per_class=self.per_class,
            solver=solver,
            samples_per_shard=self.batch_size,
            batch_size=self.batch_size,
            precision=self.precision,
            clip_latents=self.clip_latents,
            seed=self.seed,
        )

    @model_validator(mode="after")
    def _guidance_of_a_classifier(self) -> "SweepSolversConfig":
        check_guidance(self.classifier, self.guidance, self.guidance_from)
        return self

    @model_validator(mode="after")
    def _distinct_solvers(self) -> "SweepSolversConfig":
        names = [solver.name for solver in [self.reference, *self.solvers]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"solvers: expected every solver once, and not the reference, which is there anyway, got {twice[0]} "
                "twice"
            )
        if self.choice is not None and self.choice not in names:
            raise ValueError(f"choice: expected one of {', '.join(names)}, got '{self.choice}'")
        return self
