"""Config of `evaluate-images`: any images against any others, without a training run."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hdtrain.config.base import ClassifierParent, Config, Incidental, PublishedOrRaw
from hdtrain.config.training import EncoderConfig

SIDES = ("real", "fake")
STATISTICS = "statistics"
ImageLayout = Literal["auto", "class-folders", "flat", "tcga", "hdf5", "npz", "pannuke", "parquet", "webdataset"]
AnyImages = Annotated[Path, PublishedOrRaw(("images", STATISTICS))]
"""A published data set of images, published statistics, raw images, or an `.npz` with `mu` and `sigma`."""


class EvaluateImagesConfig(Config):
    """Compare two sets of images: `hdtrain evaluate real=… fake=…`, or `hdtrain evaluate-images`."""

    real: AnyImages
    """The reference."""
    fake: AnyImages
    encoder: EncoderConfig
    """Distances are named after it; FID and KID are Inception's alone."""
    judge: ClassifierParent | None = None
    """A classifier of images: how often it sees in an image of `fake` the class of its label, and in one of `real`."""
    real_layout: ImageLayout = "auto"
    """Of raw images, as in `shard`; slides must be tiled by `shard` first."""
    fake_layout: ImageLayout = "auto"
    resolution: int | None = Field(None, ge=8)
    """Bring every image to a square of this size first, as training does; None: each goes to the encoder's size from
    its own, in one step, as clean-fid and torch-fidelity have it."""
    per_class: bool = True
    """Figures by class besides, where both sets have classes; they must be the same."""
    memorisation: bool = False
    """Look for images of `fake` that are near-copies of one of `real`, in feature space."""
    kept_features: int = Field(10_000, ge=100)
    """Images a set whose features are kept in the statistics, drawn by `seed`; all figures but the Fréchet distance
    are taken on them."""
    kid_subset_size: int = Field(1000, ge=2)
    max_failed_share: float = Field(0.0, ge=0, le=1)
    """More unusable raw images than this share stop the stage; fewer are left out, and counted."""
    batch_size: int = Field(64, ge=1)
    features: Annotated[Path | None, Incidental()] = None
    """A folder of features that several runs may share; None: `RUN/features`."""
    seed: int = Field(0, ge=0)

    @property
    def data_sets(self) -> list[str]:
        """Where the statistics of each set are published."""
        return list(SIDES)

    @model_validator(mode="after")
    def _two_places(self) -> "EvaluateImagesConfig":
        if self.real == self.fake:
            raise ValueError(f"real and fake are the same: {self.real}")
        return self
