"""The table of stages: what each is called, configured by, publishes, and whether it needs torch."""

import keyword
from dataclasses import dataclass

from hdtrain.config.adaptation import AdaptDecoderConfig, TrainClassifierConfig
from hdtrain.config.base import Config
from hdtrain.config.embedding import EmbedConfig
from hdtrain.config.evaluation import EvaluateImagesConfig
from hdtrain.config.exchange import ExportConfig, ImportConfig
from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.config.painting import PaintConfig
from hdtrain.config.prior import SampleGridsConfig, TrainPriorConfig
from hdtrain.config.shards import InspectConfig, ReshardConfig, ShardConfig, VerifyConfig
from hdtrain.config.slides import EvaluateSlidesConfig
from hdtrain.config.solver_sweep import SweepSolversConfig
from hdtrain.config.synthesis import EvaluateConfig, ReportConfig, SampleConfig, SelectConfig, SweepGuidanceConfig
from hdtrain.config.training import EncodeConfig, RebuildEmaConfig, TrainLdmConfig, TrainVaeConfig


@dataclass(frozen=True)
class StageSpec:
    """One stage. `module` is imported only in the process that runs it."""

    name: str
    config: type[Config]
    publishes: str
    """Kind of its manifest, unless the config says another."""
    summary: str
    needs_torch: bool = True
    one_process: bool = False
    """More ranks would find nothing to do."""
    check: str = ""
    """Module whose `check(config, manifest_of)` finds, without torch, what the parents' manifests tell of mistakes."""
    previews: str = ""
    """Module that says, for `--dry-run`, what the stage would find and do; the resolved config comes on stdin."""
    shared: bool = False
    """Several jobs may work on one run at the same time: a second one joins the first."""
    repeats: bool = False
    """The single-stage command runs it again although it is done: a check of what lies on the disk now."""

    @property
    def trains(self) -> bool:
        """Whether it is a training, of so many images, whose cost can be told before."""
        return "duration" in self.config.model_fields

    @property
    def module(self) -> str:
        """Where its `run(config, context)` lives; a name that is Python's own word gets an underscore."""
        name = self.name.replace("-", "_")
        return f"hdtrain.stages.{name}_" if keyword.iskeyword(name) else f"hdtrain.stages.{name}"


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("shard", ShardConfig, "images", "raw data sets to WebDataset shards", needs_torch=False, shared=True),
        StageSpec("verify", VerifyConfig, "verification", "check published shards", needs_torch=False, repeats=True),
        StageSpec("inspect", InspectConfig, "inspection", "contact sheet and statistics of shards", False, True),
        StageSpec("reshard", ReshardConfig, "images", "shards of another size or order", needs_torch=False),
        StageSpec("train-vae", TrainVaeConfig, "autoencoder", "train the autoencoder"),
        StageSpec("encode", EncodeConfig, "latents", "images to latent shards", shared=True),
        StageSpec("embed", EmbedConfig, "embeddings", "a frozen encoder's embedding of every image", shared=True),
        StageSpec("train-ldm", TrainLdmConfig, "denoiser", "train the latent diffusion model"),
        StageSpec(
            "rebuild-ema", RebuildEmaConfig, "denoiser", "an EMA of another length, after training", one_process=True
        ),
        StageSpec("train-prior", TrainPriorConfig, "prior", "train the model of whole grids of embeddings"),
        StageSpec("train-classifier", TrainClassifierConfig, "classifier", "train φ, ϕ or a downstream classifier"),
        StageSpec("adapt-decoder", AdaptDecoderConfig, "autoencoder", "fine-tune the decoder on a labelled set"),
        StageSpec("sweep-guidance", SweepGuidanceConfig, "sweep", "choose the guidance scale by looking at each"),
        StageSpec(
            "sweep-solvers",
            SweepSolversConfig,
            "solver-sweep",
            "choose the solver with the fewest steps that is good enough",
            check="hdtrain.sampling.fit_solvers",
        ),
        StageSpec(
            "sample",
            SampleConfig,
            "images",
            "classifier-guided mass generation",
            check="hdtrain.sampling.fit",
            previews="hdtrain.stages.preview_sample",
            shared=True,
        ),
        StageSpec(
            "sample-grids",
            SampleGridsConfig,
            "grids",
            "grids of embeddings from a prior",
            check="hdtrain.sampling.prior_fit",
        ),
        StageSpec(
            "paint",
            PaintConfig,
            "painting",
            "one large image from a grid of embeddings",
            check="hdtrain.sampling.painting.fit",
            previews="hdtrain.stages.preview_paint",
        ),
        StageSpec("select", SelectConfig, "selection", "choose synthetic images by class centroids", shared=True),
        StageSpec("evaluate", EvaluateConfig, "evaluation", "score every arm and the images", shared=True),
        StageSpec(
            "evaluate-images",
            EvaluateImagesConfig,
            "comparison",
            "any images against any others",
            previews="hdtrain.stages.preview_comparison",
            shared=True,
        ),
        StageSpec(
            "evaluate-fidelity",
            EvaluateFidelityConfig,
            "fidelity",
            "are images what their embeddings asked for?",
            needs_torch=False,
            one_process=True,
            check="hdtrain.evaluation.fidelity_fit",
            previews="hdtrain.stages.preview_fidelity",
        ),
        StageSpec(
            "evaluate-slides",
            EvaluateSlidesConfig,
            "slide-evaluation",
            "classifiers of whole images, with and without synthetic ones",
            previews="hdtrain.stages.preview_slides",
            shared=True,
        ),
        StageSpec("report", ReportConfig, "report", "one self-contained report.html", False, True),
        StageSpec("export", ExportConfig, "export", "a diffusers folder with a model card", one_process=True),
        StageSpec(
            "import",
            ImportConfig,
            "autoencoder",
            "a model from diffusers or CompVis",
            one_process=True,
            previews="hdtrain.stages.preview_import",
        ),
    )
}
