"""Configs of the stages that write and check image shards: `shard` and `verify`."""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from hdtrain.config.base import Config, ImagesParent, RawData

SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")
RESERVED_NAMES = frozenset({"shards", "logs", "work", "tb", "checkpoints", "model", "parts"})
"""What a run directory holds itself."""
SplitName = Annotated[str, StringConstraints(pattern=f"^{SPLIT_NAME.pattern}$")]
Layout = Literal["auto", "class-folders", "flat", "tcga", "hdf5", "npz", "pannuke", "parquet", "webdataset", "slide"]


class Columns(Config):
    """What the source itself calls things: HDF5 data sets, parquet columns, WebDataset `json` keys or extensions."""

    image: str | None = None
    """The images; found by looking when left out."""
    label: str | None = None
    """The class, for a labelled data set; without it the source is unlabelled."""
    slide: str | None = None
    patient: str | None = None
    x: str | None = None
    y: str | None = None
    mpp: str | None = None


class SourceConfig(Config):
    """One raw data set, in a layout that is named or (`auto`) recognised by looking at the files."""

    path: RawData
    """A folder, an archive (zip or tar, read without unpacking) or a file."""
    layout: Layout = "auto"
    name: str | None = None
    """Stands in every sample's key and in its `source`; the folder's or file's name when left out."""
    expect: int | None = Field(None, ge=1)
    """How many images the source must yield, duplicates included; another number is an error."""
    split: SplitName | None = None
    """All of this source goes to this split; beside `splits`, or where every source has one."""
    columns: Columns = Columns()
    pattern: str | None = None
    """Regular expression searched in the file name; groups `slide`, `patient`, `x`, `y` become the sample's fields."""
    mpp: float | None = Field(None, gt=0)
    """Micrometres a pixel of the images; read from the file itself for slides, and for those that do not say it."""
    tile_px: int = Field(128, ge=8)
    """Slides and images larger than a tile are cut into tiles of this size …"""
    stride_px: int | None = Field(None, ge=1)
    """… every this many pixels (default: `tile_px`)."""
    target_mpp: float | None = Field(None, gt=0)
    """Slides: tiles at this resolution, resampled from the next finer level; None: the finest level as it is."""
    slide_reader: Literal["auto", "tifffile", "openslide"] = "auto"
    """`auto`: tifffile for .svs and .tif, OpenSlide for what it alone reads (.ndpi, .mrxs, .scn, …)."""
    tile_images: bool = False
    """Cut images of folder layouts into tiles too (for large crops); slides are always tiled."""
    min_tissue: float = Field(0.0, ge=0, le=1)
    """A tile counts when at least this share of its pixels is tissue (saturation above 0.07 and not black)."""


class EvenSampling(Config):
    """A subset of a labelled data set, drawn without replacement and by seed (k-shot: `equal`, `per_class` k).

    Of two draws that differ in their size alone, the smaller is part of the larger.
    """

    mode: Literal["equal", "stratified"] = "equal"
    """`equal`: the same number a class; `stratified`: the same fraction of every class."""
    per_class: int | None = Field(None, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    splits: list[str] | None = None
    """Only these splits are drawn from, the others stay whole; None: every split is."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_size(self) -> "EvenSampling":
        wanted, other = ("per_class", "fraction") if self.mode == "equal" else ("fraction", "per_class")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"mode '{self.mode}' takes '{wanted}' and not '{other}'")
        return self


class Splits(Config):
    """Cut the data into splits, each published as a data set of its own in `RUN/NAME`."""

    shares: dict[str, float] = Field(min_length=2)
    """Split name to its share of the samples, summing to 1; met as closely as whole groups and classes allow."""
    by: Literal["patient", "slide", "sample"] = "patient"
    """What is never cut in two."""
    seed: int = Field(0, ge=0)

    @field_validator("shares")
    @classmethod
    def _whole(cls, value: dict[str, float]) -> dict[str, float]:
        bad = [name for name in value if not SPLIT_NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"expected split names of letters, digits, _ and -, got {', '.join(map(repr, bad))}")
        if min(value.values()) < 0 or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"expected shares that sum to 1, got {', '.join(f'{k}: {v:g}' for k, v in value.items())}")
        return value


class NearDuplicates(Config):
    """Find images that look the same: a 64-bit perceptual hash, compared in all 8 orientations."""

    max_distance: int = Field(3, ge=0, le=8)
    """Bits that may differ. 0–4 find re-compressed and slightly shifted copies; beyond, plain tissue looks alike."""


class ShardConfig(Config):
    """Raw data sets to image shards: `hdtrain shard`."""

    sources: list[SourceConfig] = Field(min_length=1)
    classes: list[str] | None = None
    """Class names in label order; None: the names that the sources have, sorted, else unlabelled."""
    split: SplitName = "train"
    """Name of the split that everything belongs to, where there are not several."""
    splits: Splits | None = None
    sample: EvenSampling | None = None
    max_samples: int | None = Field(None, ge=1)
    duplicates: Literal["drop", "keep"] = "drop"
    """Images of the same pixels, also turned or mirrored: all but the first dropped, or kept and listed."""
    near_duplicates: NearDuplicates | None = None
    """Treat images that only look the same as duplicates too."""
    samples_per_shard: int = Field(1000, ge=1)
    shuffle: bool = True
    seed: int = Field(0, ge=0)
    max_failed_share: float = Field(0.01, ge=0, le=1)
    """More unreadable images than this share of the input is fatal; fewer are skipped, counted and named."""
    alpha: Literal["white", "reject"] = "white"
    """RGBA and palette transparency: composed over white, or rejected. Such images are re-encoded."""
    resize_px: int | None = Field(None, ge=8)
    """Re-encode every image at this size; None passes the original bytes through wherever they are RGB."""
    format: Literal["original", "png", "jpg"] = "original"
    """`original`: the bytes as they are, and PNG for what has none (slides, arrays) or must change; `png`, `jpg`:
    re-encode what is not in this format. A JPEG is never re-encoded, unless it is resized."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Of what is encoded as `jpg`, with the chroma at full resolution."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (len(set(value)) != len(value) or len(value) < 2):
            raise ValueError("expected at least two distinct class names")
        return value

    @model_validator(mode="after")
    def _known_splits(self) -> "ShardConfig":
        fixed = [source.split for source in self.sources]
        if any(fixed) and not self.splits and not all(fixed):
            raise ValueError("give every source a 'split', or say under 'splits' where the other sources go")
        names = self.split_names
        taken = sorted(RESERVED_NAMES & set(names))
        if taken and len(names) > 1:
            raise ValueError(f"a split cannot be named {', '.join(taken)}: a run directory has a folder of that name")
        if self.sample and self.max_samples:
            raise ValueError("'max_samples' would upset what 'sample' draws by class; give one of them")
        unknown = sorted({*(name for name in (self.sample and self.sample.splits) or ())} - set(names))
        if unknown:
            raise ValueError(f"sample.splits: no split named {', '.join(unknown)}; there are {', '.join(names)}")
        return self

    @property
    def data_sets(self) -> list[str]:
        """Every split, if there are several."""
        return self.split_names if len(self.split_names) > 1 else []

    @property
    def split_names(self) -> list[str]:
        """Every split, in the order in which it is first named."""
        fixed = [source.split for source in self.sources if source.split]
        return list(dict.fromkeys([*(self.splits.shares if self.splits else ()), *fixed])) or [self.split]


class VerifyConfig(Config):
    """Check published image shards: `hdtrain verify`."""

    images: ImagesParent
    decode: bool = True
    """Decode the images, besides sizes, checksums, members and counts."""
    sample: int | None = Field(None, ge=1)
    """Look at this many samples, drawn by `seed`, and at no checksum; None: at every byte."""
    seed: int = Field(0, ge=0)
    disjoint_from: list[ImagesParent] = Field([])
    """No patient, slide, key or image (turned or mirrored copies too) may also be in one of these."""


class InspectConfig(Config):
    """Look at published image shards: `hdtrain inspect`."""

    images: ImagesParent
    per_class: int = Field(12, ge=1, le=64)
    """Images of every class (or, unlabelled, of every source) on the contact sheet."""
    thumbnail_px: int = Field(96, ge=16, le=512)
    sample: int = Field(2000, ge=1)
    """Images, drawn by `seed`, that the sizes and stain statistics are taken from."""
    seed: int = Field(0, ge=0)


class ReshardConfig(Config):
    """Published image data sets to shards of another size or order, their bytes untouched: `hdtrain reshard`."""

    images: list[ImagesParent] = Field(min_length=1)
    """Several are joined; their classes must be the same."""
    samples_per_shard: int = Field(1000, ge=1)
    shuffle: bool = True
    seed: int = Field(0, ge=0)
