"""Configs of the stages from models to an answer: `sweep-guidance`, `sample`, `select`, `evaluate`, `report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hdtrain.config.base import (
    AutoencoderParent,
    ClassifierParent,
    Config,
    DenoiserParent,
    EmbeddingsOrGridsParent,
    EvaluationParent,
    ImagesParent,
    Incidental,
    LatentsParent,
    SelectionParent,
    SolverSweepParent,
    SweepParent,
)
from hdtrain.config.protocol import CONFLICTS, FollowsProtocol
from hdtrain.config.ranges import parse_ranges
from hdtrain.config.training import EncoderConfig


class SolverConfig(Config):
    """How the reverse process is solved. Method, section 5; `docs/stages/sample.md` says when to take which."""

    kind: Literal["ddim", "ddpm", "dpm-solver++", "unipc"] = "ddim"
    """DDIM (Song et al. 2021) as published; DDPM (Ho et al. 2020) draws from the posterior N(μ + g·Σ·∇, Σ);
    DPM-Solver++ (Lu et al. 2022) and UniPC (Zhao et al. 2023) need 20–50 steps."""
    steps: int = Field(200, ge=1)
    """DDIM and DDPM: must divide the denoiser's training timesteps: 20, 25, 40, 50, 100, 125, 200, 250 or 500 of 1000,
    of which timesteps 1, 1+T/S, … are taken (T/S−1, 2T/S−1, …, T−1 under a zero terminal SNR)."""
    eta: float = Field(0.0, ge=0, le=1)
    """DDIM: 0 is deterministic, 1 as noisy as DDPM."""
    order: Literal[1, 2, 3] = 2
    """DPM-Solver++ and UniPC."""
    splitting: bool = False
    """DPM-Solver++ and UniPC: take the classifier's term in a step of its own, of first order, between those of the
    denoiser (operator splitting, Wizadwongsa & Suwajanakorn 2023); else it goes into the high-order step, as both
    were published."""

    @property
    def name(self) -> str:
        """`ddim-200`, `unipc-20`; behind it what of its other settings is not the default and makes a difference:
        `ddim-50-eta1`, `unipc-20-order3-split`."""
        name = f"{self.kind}-{self.steps}"
        if self.kind in ("ddim", "ddpm"):
            return f"{name}-eta{self.eta:g}" if self.eta else name
        order = f"-order{self.order}" if self.order != SolverConfig.model_fields["order"].default else ""
        return name + order + ("-split" if self.splitting else "")

    @model_validator(mode="after")
    def _eta_is_ddims(self) -> "SolverConfig":
        if self.eta > 0 and self.kind != "ddim":
            raise ValueError(f"eta belongs to solver.kind=ddim; {self.kind} has none")
        return self


def check_guidance(
    classifier: Path | None, guidance: float, guidance_from: Path | None, untouched: Sequence[float] = (1.0, 0.0)
) -> None:
    """Refuse a g where nothing takes it.

    Args:
        classifier: ϕ.
        guidance: g.
        guidance_from: the sweep that g comes from.
        untouched: values of g that say nothing, since they are defaults.

    Raises:
        ValueError: says which of the two was given without a classifier.
    """
    if classifier is not None:
        return
    if guidance_from is not None:
        raise ValueError("guidance_from is the g of a classifier; give 'classifier' (ϕ), or leave guidance_from out")
    if guidance not in untouched:
        raise ValueError(
            f"guidance={guidance:g} is the g of a classifier, and there is none; give 'classifier' (ϕ), or leave "
            "guidance out"
        )


class FromEmbeddingsConfig(Config):
    """Images from embeddings: each is what the denoiser looks at in place of a class, and says the label."""

    run: EmbeddingsOrGridsParent
    """Of the encoder that the denoiser was trained with; of images that it was trained on, or any others; or sampled
    from a prior, every cell of every grid being one."""
    keys: list[str] = Field([])
    """Of these images, or cells (`NAME-ROW-COLUMN`), only; none: all of them."""
    variations: int = Field(1, ge=1)
    """Images from each embedding, each from noise of its own."""
    strength: float = Field(1.0, gt=0, le=1)
    """Below 1 an image begins from its own latent with noise as of this share of the timesteps (SDEdit, Meng et al.
    2022): the smaller, the nearer to the original. DDIM and DDPM only."""
    latents: LatentsParent | None = None
    """The same images, encoded; what `strength` < 1 begins from."""
    between: list[tuple[str, str]] = Field([])
    """Pairs of keys: from the one embedding to the other, by slerp, in place of the embeddings themselves."""
    points: int = Field(5, ge=2)
    """Images a pair, the first and the last at the two embeddings."""

    def num_conditions(self, num_embeddings: int) -> int:
        """How many things there are to make images of, in a run of so many embeddings."""
        return len(self.between) * self.points if self.between else len(self.keys) or num_embeddings

    @model_validator(mode="after")
    def _something_to_begin_from(self) -> "FromEmbeddingsConfig":
        if self.strength < 1 and self.latents is None:
            raise ValueError(
                f"strength={self.strength:g} begins from the images' latents; give latents=RUN (`hdtrain encode`), or "
                "leave strength out, as with sampled grids, which are of no image"
            )
        if self.strength == 1 and self.latents is not None:
            raise ValueError("latents are what strength below 1 begins from; give strength, or leave latents out")
        if self.between and (self.keys or self.strength < 1):
            raise ValueError("between names its own keys and begins from noise; leave keys, strength and latents out")
        return self


class SampleConfig(FollowsProtocol):
    """Classifier-guided mass generation: `hdtrain sample`. Image i is a function of (seed, i) alone."""

    stage_name = "sample"

    denoiser: DenoiserParent
    decoder: AutoencoderParent | None = None
    """D′ (or the plain autoencoder, for the ablation); None for a denoiser that was trained on pixels."""
    classifier: ClassifierParent | None = None
    """ϕ; None samples without guidance and, unless the denoiser is class-conditional, without labels."""
    guidance: float = Field(1.0, ge=0)
    """g, of the classifier."""
    guidance_from: SweepParent | None = None
    """Take g from the choice of this sweep, and not from `guidance`."""
    classifier_free: float | None = Field(None, ge=0)
    """Of a denoiser that sees classes or embeddings: ε_u + w·(ε_c − ε_u) (Ho & Salimans 2022), w = 1 being the plain
    conditional one; None is 1."""
    per_class: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]] | None = None
    """Images a class; without classes, images in all. By name where classes differ: those not named get none. Of
    `embeddings` it is their number that counts."""
    embeddings: FromEmbeddingsConfig | None = None
    """What a denoiser that looks at embeddings is to make images of."""
    images: str | None = None
    """Of these images only some, as `0-999,5000`: each is what it would be in the whole run."""
    solver: SolverConfig = SolverConfig()
    solver_from: SolverSweepParent | None = None
    """Take the solver from the choice of this sweep, and not from `solver`."""
    samples_per_shard: int = Field(256, ge=1)
    batch_size: int = Field(32, ge=1)
    """What the networks see at once. Another one moves a pixel in some ten thousand by 1 of 255, in `fp64` none."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of the networks. `bf16`: the solver and the decoder stay fp32. `fp64`: everything."""
    compile: bool = False
    """The denoiser by torch.compile, with CUDA graphs on a GPU."""
    clip_latents: float | None = Field(None, gt=0)
    """Clamp the predicted scaled ẑ₀ (unit standard deviation; pixels: 1) to ± this; None: no clamp, as published."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _classes_or_embeddings(self) -> "SampleConfig":
        if self.embeddings is None and self.per_class is None:
            raise ValueError("per_class: say how many images a class, or give embeddings")
        if self.embeddings is None:
            return self
        given = [name for name in ("per_class", "classifier", "guidance_from") if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{given[0]} does not go with embeddings, which say what each image is of; leave it out")
        if self.embeddings.strength < 1 and self.solver.kind not in ("ddim", "ddpm"):
            raise ValueError(
                f"embeddings.strength begins in the middle, which solver.kind={self.solver.kind} cannot; use ddim"
            )
        return self

    @model_validator(mode="after")
    def _some_images(self) -> "SampleConfig":
        if isinstance(self.per_class, dict) and not any(self.per_class.values()):
            raise ValueError("per_class: expected at least one image, got none")
        if self.images is not None:
            parse_ranges(self.images)
        return self

    @model_validator(mode="after")
    def _guidance_of_a_classifier(self) -> "SampleConfig":
        untouched = CONFLICTS["sample"][self.protocol]["guidance"], 1.0, 0.0
        check_guidance(self.classifier, self.guidance, self.guidance_from, untouched)
        return self

    def departures(self) -> list[str]:
        """As every stage's; without ϕ its g is no departure, but its absence is, and so is the other guidance."""
        lines = super().departures()
        if self.classifier is None:
            lines = [line for line in lines if not line.startswith("guidance:")] + ["classifier: none (ϕ)"]
        if self.classifier_free is not None:
            lines.append(f"classifier_free: {self.classifier_free:g} (none)")
        return lines


class SweepGuidanceConfig(FollowsProtocol):
    """A few images at every guidance scale, scored, and one scale chosen: `hdtrain sweep-guidance`."""

    stage_name = "sweep-guidance"

    denoiser: DenoiserParent
    decoder: AutoencoderParent
    classifier: ClassifierParent
    """ϕ."""
    guidances: list[Annotated[float, Field(ge=0)]] = Field([0.0, 1.0, 2.5, 5.0, 10.0], min_length=2)
    per_class: int = Field(50, ge=2)
    """Images a class and scale, from the same noise at every scale."""
    solver: SolverConfig = SolverConfig()
    clip_latents: float | None = Field(None, gt=0)
    """As in `sample`."""
    real: list[ImagesParent] = Field(min_length=1)
    """Real labelled training images: what the generated ones are held against."""
    encoder: EncoderConfig
    judge: ClassifierParent
    """A classifier of images that never saw ϕ: how often it agrees with the class that was asked for."""
    choice: float | None = Field(None, ge=0)
    """One of `guidances`, chosen by you after looking; None: by rule, the best agreement among the scales whose Fréchet
    distance is within `tolerance` of the smallest."""
    tolerance: float = Field(0.1, ge=0)
    """0.1 is 10 %."""
    batch_size: int = Field(32, ge=1)
    resolution: int = Field(256, ge=8)
    seed: int = Field(0, ge=0)

    @property
    def data_sets(self) -> list[str]:
        """The images of every scale."""
        return [f"g-{guidance:g}" for guidance in self.guidances]

    @property
    def publishes(self) -> str | None:
        """Besides its data sets."""
        return "sweep"

    @model_validator(mode="after")
    def _distinct_scales(self) -> "SweepGuidanceConfig":
        if len(set(self.data_sets)) < len(self.guidances):
            raise ValueError(f"guidances: expected every scale once, got {self.guidances}")
        if self.choice is not None and self.choice not in self.guidances:
            raise ValueError(f"choice: expected one of guidances {self.guidances}, got {self.choice:g}")
        return self


class GateConfig(Config):
    """Which candidates may be selected at all."""

    confidence: float | None = Field(None, ge=0, le=1)
    """Gate A: softmax of the target class under `classifier` at least this; None switches it off."""
    entropy: float | None = Field(None, gt=0)
    """Gate A as HistoGAN has it: predictive entropy in nats over `mc_passes` Monte-Carlo-dropout passes of `classifier`
    at most this, and its mean prediction the target class; None switches it off."""
    mc_passes: int = Field(20, ge=2)
    nearest_centroid: bool = True
    """Gate B: the nearest centroid is the target class's."""
    closer_half: bool = False
    """HistoGAN's own rule besides: of the candidates of a class that pass, only the half nearer to its centroid."""


class SelectConfig(Config):
    """Keep, per class, the candidates nearest to their class's centroid: `hdtrain select`."""

    real: list[ImagesParent] = Field(min_length=1)
    """The real training images: they alone make the centroids."""
    candidates: list[ImagesParent] = Field(min_length=1)
    encoder: EncoderConfig
    classifier: ClassifierParent | None = None
    """φ, for gate A."""
    gates: GateConfig = GateConfig()
    ratios: list[float] = Field([0.5, 1.0], min_length=1)
    """Selected images a class, as a multiple of the real ones: each makes `selective-R` and `random-R`."""
    shortfall: Literal["stop", "fill"] = "fill"
    """Fewer candidates than asked pass the gates: `stop` with the counts, or `fill` with the nearest of the others."""
    top_up: float | None = Field(None, gt=1)
    """Before that, sample more of the short classes as the candidates' own run would have gone on, up to this many
    times the candidates of a class; needs one set of candidates, made by `sample`. None: only what is there."""
    batch_size: int = Field(64, ge=1)
    resolution: int = Field(256, ge=8)
    features: Annotated[Path | None, Incidental()] = None
    """A folder of features that several runs may share; None: `RUN/features`."""
    seed: int = Field(0, ge=0)

    @property
    def data_sets(self) -> list[str]:
        """Every ratio, selected and drawn at random."""
        return [f"{rule}-{ratio:g}" for ratio in self.ratios for rule in ("selective", "random")]

    @model_validator(mode="after")
    def _gate_a_needs_classifier(self) -> "SelectConfig":
        needing = [name for name in ("confidence", "entropy") if getattr(self.gates, name) is not None]
        if needing and self.classifier is None:
            raise ValueError(f"gates.{needing[0]} needs 'classifier' (φ)")
        if self.top_up is not None and len(self.candidates) > 1:
            raise ValueError(f"top_up needs one set of candidates, got {len(self.candidates)}")
        if any(ratio <= 0 for ratio in self.ratios):
            raise ValueError("ratios must be greater than 0")
        if len(set(self.data_sets)) < len(self.data_sets):
            raise ValueError(f"ratios: expected every ratio once, got {self.ratios}")
        return self


class ArmConfig(Config):
    """One row of the table: a downstream classifier, and the synthetic images that it was given, if any."""

    classifier: ClassifierParent
    synthetic: ImagesParent | None = None
    series: str = ""
    """Arms of one series are joined to a line in the report's plot of accuracy against the ratio."""
    description: str = ""


class EvaluateConfig(Config):
    """Score every arm on the test split, and the images themselves: `hdtrain evaluate`."""

    test: ImagesParent
    train: ImagesParent
    """The real labelled images of the arms: reference of the image metrics, and the colour histogram's training set."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    baseline: str
    encoder: EncoderConfig
    """Image metrics are named after it (FD-…)."""
    judge: ClassifierParent | None = None
    """Says whether synthetic images look like their label; it must never have seen ϕ, φ or a synthetic image."""
    candidates: ImagesParent | None = None
    """The whole pool before selection, scored beside the arms."""
    batch_size: int = Field(64, ge=1)
    resolution: int = Field(256, ge=8)
    features: Annotated[Path | None, Incidental()] = None
    """A folder of features that several runs may share; None: `RUN/features`."""
    bootstrap_resamples: int = Field(2000, ge=100)
    kid_subset_size: int = Field(100, ge=2)
    memorisation_px: int = Field(32, ge=4)
    """Pixel distances to training images are taken at this size, over the 8 symmetries."""
    failures: int = Field(24, ge=0)
    """Pictures in the failure gallery: what the judge is surest of being another class."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> "EvaluateConfig":
        reserved = {"candidates", "real test images"} & set(self.arms)
        if reserved:
            raise ValueError(f"arm name '{reserved.pop()}' is taken by an image set of that name; choose another")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline '{self.baseline}' is not one of the arms: {', '.join(self.arms)}")
        return self


class ReportConfig(Config):
    """One self-contained HTML file: `hdtrain report`. Its graph of stages is followed from the manifests."""

    evaluation: EvaluationParent
    selection: SelectionParent | None = None
    """Shown with what it took and rejected; None: examples of every arm's synthetic images."""
    sweep: SweepParent | None = None
    """Shown with its plot and choice."""
    title: str = "hdtrain report"
    examples_per_class: int = Field(6, ge=1)
