"""Configs of the prior: `train-prior` learns grids of embeddings, `sample-grids` draws some."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hdtrain.config.base import Config, ForeignModel, InputFile, Kinds
from hdtrain.config.engine import BatchConfig, DurationConfig, EmaConfig, EngineConfig, GuardConfig, OptimConfig
from hdtrain.config.presets import PriorPreset
from hdtrain.config.training import NoiseScheduleConfig

GridsParent = Annotated[Path, Kinds(("embeddings", "grids"))]
PriorParent = Annotated[Path, Kinds(("prior",))]
VectorsFile = Annotated[Path, InputFile()]
Dropout = Annotated[float, Field(ge=0, lt=1)]

USUAL_SIDE = 4
"""Cells of a crop."""
USUAL_DROPOUT = 0.1
"""Of one condition alone, where there are several."""


class TextTowerConfig(Config):
    """The text half of a CLIP-like model, from a local folder. Needs the extra: `pip install 'hdtrain[text]'`."""

    kind: Literal["transformers", "open_clip"] = "transformers"
    folder: ForeignModel
    """As `save_pretrained` writes it, with the tokenizer; of open_clip with `open_clip_config.json`."""


class TextCondition(Config):
    """A vector of text for a slide or an image: computed already, or of captions by a text tower."""

    vectors: VectorsFile | None = None
    """`.parquet`, `.csv`, `.npz` or `.npy`: key to vector. The key is that of the slide, or of the image."""
    captions: VectorsFile | None = None
    """In their place: `.csv` with columns `key` and `text`, or `.json` of key to text."""
    tower: TextTowerConfig | None = None
    """Of `captions`; or the one that made `vectors`: then sampling takes sentences."""
    dropout: Dropout | None = None
    """How often it alone is hidden; null: 0.1, or 0 where it is the only condition."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.vectors is None) == (self.captions is None):
            raise ValueError("give vectors or captions, one of them")
        if self.captions is not None and self.tower is None:
            raise ValueError("captions need a tower: text.tower.folder=FOLDER, with its weights and tokenizer")
        return self


class NumericCondition(Config):
    """Numbers for a slide or an image, such as a genomic profile."""

    vectors: VectorsFile
    """As of `text`; standardised over the training grids' own."""
    dropout: Dropout | None = None
    """How often it alone is hidden; null: 0.1, or 0 where it is the only condition."""


class TrainPriorConfig(Config):
    """Train a diffusion model of whole grids of embeddings: `hdtrain train-prior` (method, section 9)."""

    grids: list[GridsParent] = Field(min_length=1)
    token: int = Field(0, ge=0)
    """Which token of a cell, where its embedding has several."""
    unit: Literal["slides", "images"] = "slides"
    """A sample is a crop of a slide's grid; or a single image, a grid of one cell, where there are no slides."""
    rows: int | None = Field(None, ge=1)
    """Of a sample; null: 4, of images 1."""
    columns: int | None = Field(None, ge=1)
    stride: int | None = Field(None, ge=1)
    """Cells from one crop to the next; null: half of the smaller side."""
    min_present: float = Field(0.5, gt=0, le=1)
    """Crops with a smaller share of their cells are left out."""
    class_conditional: bool = False
    """The class of the slide, or that most of the crop's cells have."""
    class_dropout: Dropout | None = None
    """How often it alone is hidden; null: 0.1, or 0 where it is the only condition."""
    text: TextCondition | None = None
    numeric: NumericCondition | None = None
    dropout: Dropout = 0.1
    """How often all conditions are hidden at once: what classifier-free guidance needs."""
    preset: PriorPreset = "dit-b"
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(kind="squaredcos_cap_v2")
    batch: BatchConfig = BatchConfig(global_batch_size=64)
    """An image here is a sample: a crop, or an image."""
    optim: OptimConfig = OptimConfig(lr=1e-4)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    ema: EmaConfig = EmaConfig(post_hoc=False)
    validation: GridsParent | None = None
    """Grids that are not trained on, of the same kinds of labels; the text and numbers of their keys are in the same
    files. None: the loss on fixed noise is that of training samples."""
    validation_images: int = Field(256, ge=1)
    """How many of their samples, at most."""
    seed: int = Field(0, ge=0)

    @property
    def step(self) -> int:
        """Cells from one crop to the next."""
        return self.stride or max(1, min(self.size) // 2)

    @property
    def dropouts(self) -> tuple[float, float, float]:
        """Of class, text and numbers alone."""
        given = {
            "class": (self.class_conditional, self.class_dropout),
            "text": (self.text is not None, self.text.dropout if self.text else None),
            "numeric": (self.numeric is not None, self.numeric.dropout if self.numeric else None),
        }
        usual = USUAL_DROPOUT if sum(there for there, _ in given.values()) > 1 else 0.0
        found = [(usual if own is None else own) if there else 0.0 for there, own in given.values()]
        return found[0], found[1], found[2]

    @model_validator(mode="after")
    def _single_cells(self) -> Self:
        if self.unit == "images" and self.size != (1, 1):
            raise ValueError(f"unit=images trains on single images, 1 × 1; got {self.size[0]} × {self.size[1]}")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a sample."""
        usual = 1 if self.unit == "images" else USUAL_SIDE
        return self.rows or usual, self.columns or usual


class PriorConditions(Config):
    """What a prior is asked for; a condition that is left out is hidden from it."""

    rows: int | None = Field(None, ge=1)
    """Of the grid; null: as the prior was trained."""
    columns: int | None = Field(None, ge=1)
    label: str | None = None
    """One of the prior's classes."""
    text: str | None = None
    """A sentence, for the text tower that the prior was trained with."""
    tower: TextTowerConfig | None = None
    """Where that tower is, if no longer where it was in training."""
    text_vectors: VectorsFile | None = None
    """In place of `text`: a file of key to vector."""
    numeric: VectorsFile | None = None
    """A file of key to numbers."""
    key: str | None = None
    """Whose vectors, where the files have several keys."""

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.text is not None and self.text_vectors is not None:
            raise ValueError("text is a sentence and text_vectors its vector; give one of them")
        return self


class SampleGridsConfig(PriorConditions):
    """Draw grids of embeddings from a prior: `hdtrain sample-grids`."""

    prior: PriorParent
    count: int = Field(1, ge=1)
    """Grids; with `every_class` of every class."""
    every_class: bool = False
    """All classes of the prior in turn, in place of `label`."""
    guidance: float = Field(2.0, ge=0)
    """w of ẑ_u + w·(ẑ_c − ẑ_u); 1 is the conditions alone."""
    steps: int = Field(200, ge=1)
    """Of DDIM: must divide the prior's training timesteps."""
    batch_size: int = Field(8, ge=1)
    """Grids that the network sees at once; always so many, since kernels give other bits at other shapes."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_class(self) -> Self:
        if self.every_class and self.label is not None:
            raise ValueError(f"every_class asks for all classes, label for {self.label} alone; give one of them")
        return self
