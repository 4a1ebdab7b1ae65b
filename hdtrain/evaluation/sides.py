"""The two sets of a comparison: what was given, whether they can be compared, and what is known of each."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hdtrain.config.evaluation import EvaluateImagesConfig
from hdtrain.errors import DataError, ManifestError
from hdtrain.evaluation.compare import MIN_FRECHET_IMAGES
from hdtrain.evaluation.set_statistics import Gaussian, SetStatistics, measure, read_gaussian, read_statistics
from hdtrain.features.encoders import Encoder
from hdtrain.features.own_size import embed_own_size
from hdtrain.features.store import FeatureSet, FeatureStore, embed_dataset
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.comparison import ComparedSet
from hdtrain.formats.manifest import Manifest

_SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Side:
    """One of the two sets."""

    name: str
    """`real` or `fake`."""
    path: Path
    kind: Literal["images", "statistics", "raw", "moments"]
    dataset: tuple[Path, Manifest] | None = None
    """The published images or statistics; of raw images those that were packed."""
    classes: list[str] | None = None
    features: FeatureSet | None = None
    """None where statistics were given."""
    statistics: SetStatistics | Gaussian | None = None

    def read(self, encoder: Encoder, made: dict[str, Any]) -> "Side":
        """With the statistics that were given, if some were.

        Raises:
            ManifestError: they were made with another encoder.
            DataError: mean and covariance that cannot be used.
        """
        if self.kind == "moments":
            return replace(self, statistics=read_gaussian(self.path, encoder.dim))
        if self.kind == "statistics" and self.dataset:
            return replace(self, statistics=read_statistics(*self.dataset, made))
        return self

    def measure(self, config: EvaluateImagesConfig, encoder: Encoder, store: FeatureStore) -> "Side":
        """With statistics; every process calls it.

        Raises:
            DataError: an image cannot be decoded, or there are fewer than 2.
        """
        if self.statistics is not None or self.dataset is None:
            return self
        count = self.dataset[1].num_samples
        if count < MIN_FRECHET_IMAGES:
            raise DataError(
                f"{self.name}: {count} image in {self.path}; a Fréchet distance needs {MIN_FRECHET_IMAGES}, and the "
                "other figures more"
            )
        title = f"features of {self.name}"
        if config.resolution is None:
            features = embed_own_size(title, self.dataset, encoder, store, config.batch_size)
        else:
            features = embed_dataset(title, self.dataset, encoder, store, config.batch_size, config.resolution)
        statistics = measure(features, self.classes, store, config.kept_features, config.seed)
        return replace(self, features=features, statistics=statistics)

    @property
    def image_shape(self) -> list[int | None] | None:
        """Height, width and 3 of the images, None for what differs; None where it is not known."""
        if self.dataset is None:
            return None
        manifest = self.dataset[1]
        shape = manifest.fields["image"].shape if "image" in manifest.fields else manifest.info.get("image_shape")
        return list(shape) if shape else None

    def described(self) -> ComparedSet:
        """For `results.json`."""
        manifest = self.dataset[1] if self.dataset else None
        known = self.statistics if isinstance(self.statistics, SetStatistics) else None
        return ComparedSet(
            path=str(self.path),
            kind=self.kind,
            identity=manifest.identity if manifest else sha256_file(self.path),
            num_images=known.moments.n if known else None,
            num_kept=len(known.features) if known else 0,
            num_rejected=int(manifest.info["num_rejected"]) if manifest and self.kind == "raw" else 0,
            class_counts=known.class_counts if known else {},
        )


def check_sides(config: EvaluateImagesConfig, real: Side, fake: Side) -> list[str]:
    """Warnings about what the two sets have not in common.

    Raises:
        ManifestError: both have classes and these differ; or memorisation is asked for and a side is no images.
    """
    if config.memorisation:
        for side in (real, fake):
            if side.kind in ("statistics", "moments"):
                raise ManifestError(
                    f"{side.name}: {side.path} is statistics, and memorisation needs the images themselves; give "
                    "those, or memorisation=false"
                )
    warnings = []
    if config.per_class and real.classes and fake.classes and set(real.classes) != set(fake.classes):
        raise ManifestError(
            f"classes differ: real {real.path} has {listed_classes(real.classes)}; fake {fake.path} has "
            f"{listed_classes(fake.classes)}; make them the same, or give per_class=false to compare the sets as wholes"
        )
    if config.per_class and bool(real.classes) != bool(fake.classes):
        without = fake if real.classes else real
        but = " but the judge's" if config.judge else ""
        warnings.append(f"{without.name} has no classes, so there are no figures by class{but}")
    shapes = [side.image_shape for side in (real, fake)]
    if all(shapes) and shapes[0] != shapes[1]:
        warnings.append(
            f"the images are of different sizes: real {_size(shapes[0])}, fake {_size(shapes[1])}; resizing alone "
            "moves every figure"
        )
    return warnings


def listed_classes(classes: list[str]) -> str:
    """Class names for a message, the first ten."""
    more = f" and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
    return ", ".join(classes[:_SHOWN_CLASSES]) + more


def _size(shape: list[int | None] | None) -> str:
    if not shape or shape[0] is None or shape[1] is None:
        return "several sizes"
    return f"{shape[0]} × {shape[1]} px"
