"""Configs of the stages that write and check image shards: `shard` and `verify`."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hdtrain.config.base import Config, ImagesParent, RawData

Layout = Literal["auto", "class-folders", "flat", "slide"]


class SourceConfig(Config):
    """One raw data set. `layout: auto` looks: a slide file, folders of images (class-folders), or images (flat)."""

    path: RawData
    layout: Layout = "auto"
    name: str | None = None
    """Stands in every sample's key and in its `source`; the folder's or file's name when left out."""
    pattern: str | None = None
    """Regular expression searched in the file name; groups `slide`, `patient`, `x`, `y` become the sample's fields."""
    mpp: float | None = Field(None, gt=0)
    """Micrometres a pixel of the images; read from the file itself for slides."""
    tile_px: int = Field(128, ge=8)
    """Slides and images larger than a tile are cut into tiles of this size …"""
    stride_px: int | None = Field(None, ge=1)
    """… every this many pixels (default: `tile_px`)."""
    tile_images: bool = False
    """Cut images of folder layouts into tiles too (for large crops); slides are always tiled."""
    min_tissue: float = Field(0.0, ge=0, le=1)
    """A tile counts when at least this share of its pixels is tissue (saturation above 0.07 and not black)."""


class EvenSampling(Config):
    """A subset of a labelled source, drawn without replacement and by seed."""

    mode: Literal["equal", "stratified"] = "equal"
    """`equal`: the same number a class; `stratified`: the same fraction of every class."""
    per_class: int | None = Field(None, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_size(self) -> "EvenSampling":
        wanted, other = ("per_class", "fraction") if self.mode == "equal" else ("fraction", "per_class")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"mode '{self.mode}' takes '{wanted}' and not '{other}'")
        return self


class ShardConfig(Config):
    """Raw data sets to image shards: `hdtrain shard`."""

    sources: list[SourceConfig] = Field(min_length=1)
    classes: list[str] | None = None
    """Class names in label order; None: the folder names, sorted, when the layout has classes, else unlabelled."""
    split: str = "train"
    sample: EvenSampling | None = None
    max_samples: int | None = Field(None, ge=1)
    samples_per_shard: int = Field(1000, ge=1)
    shuffle: bool = True
    seed: int = 0
    max_failed_share: float = Field(0.01, ge=0, le=1)
    """More unreadable images than this share of the input is fatal; fewer are skipped, counted and named."""
    alpha: Literal["white", "reject"] = "white"
    """RGBA and palette transparency: composed over white, or rejected. Such images are re-encoded as PNG."""
    resize_px: int | None = Field(None, ge=8)
    """Re-encode every image at this size (PNG); None passes the original bytes through wherever they are RGB."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (len(set(value)) != len(value) or len(value) < 2):
            raise ValueError("expected at least two distinct class names")
        return value


class VerifyConfig(Config):
    """Check published image shards: `hdtrain verify`."""

    images: ImagesParent
    decode: bool = True
    """Decode every image, besides sizes, checksums and counts."""
