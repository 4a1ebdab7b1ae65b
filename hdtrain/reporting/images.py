"""Example images from published shards, as thumbnails in data: URIs."""

import base64
import io
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.results import Failure, NearestPair
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardReader, is_complete, open_shards
from hdtrain.reporting.runs import Run, parent_directories

MAX_THUMBNAIL_PX = 112
SMALL_PX = 56
"""Images up to this size are enlarged twofold, each pixel to four, so that nothing is invented."""
JPEG_QUALITY = 88
DRAW_SEED = 0
_ARM, _SYNTHETIC = "arms.", ".synthetic"
NEAREST_SHOWN = 24


@dataclass(frozen=True)
class Thumbnail:
    """One picture; `uri` is None where the key was not found or the image cannot be decoded."""

    key: str
    uri: str | None
    note: str = ""


@dataclass(frozen=True)
class GalleryRow:
    """Some images of one class from one place."""

    title: str
    total: int
    """How many there are in all."""
    images: list[Thumbnail]
    missing_shards: int = 0
    """Published once, and not on disk any more: their images are neither shown nor counted."""


@dataclass(frozen=True)
class ShownPair:
    """A synthetic image beside its nearest real one."""

    pair: NearestPair
    synthetic: Thumbnail
    real: Thumbnail
    """Turned as the pair says."""


@dataclass(frozen=True)
class ShownFailure:
    """A synthetic image that went wrong."""

    failure: Failure
    image: Thumbnail


def thumbnail(
    key: str, data: bytes | memoryview | None, note: str = "", quarter_turns: int = 0, mirrored: bool = False
) -> Thumbnail:
    """Decode an image (any format PIL reads) and encode it small: PNG where it is small itself, JPEG otherwise.

    It is turned counter-clockwise by quarters first, then mirrored left to right.
    """
    if data is None:
        return Thumbnail(key, None, "not found")
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return Thumbnail(key, None, "cannot be decoded")
    image = image.rotate(90 * quarter_turns, expand=True)
    image = ImageOps.mirror(image) if mirrored else image
    small = max(image.size) <= SMALL_PX
    if small:
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    else:
        image.thumbnail((MAX_THUMBNAIL_PX, MAX_THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(key, f"data:image/{'png' if small else 'jpeg'};base64,{encoded}", note)


class ImageSet:
    """Images of published data sets, by key and by class."""

    def __init__(self, directories: Iterable[Path]):
        published: list[tuple[ShardReader, Manifest]] = [
            (reader, manifest)
            for directory in dict.fromkeys(directories)
            if RunDir(directory).manifest.exists()
            for manifest in [read_manifest(directory, ("images",))]
            for reader in open_shards(directory, manifest)
        ]
        self.readers = [(reader, manifest) for reader, manifest in published if is_complete(reader.path)]
        self.missing_shards = len(published) - len(self.readers)

    @cached_property
    def places(self) -> dict[str, tuple[ShardReader, int]]:
        """Key to shard and position."""
        return {key: (reader, i) for reader, _ in self.readers for i, key in enumerate(reader.sidecar.keys)}

    @cached_property
    def keys_by_class(self) -> dict[str, list[str]]:
        """Class name to keys, in the order of the shards."""
        grouped: dict[str, list[str]] = {}
        for reader, manifest in self.readers:
            for key, label in zip(reader.sidecar.keys, reader.sidecar.labels, strict=True):
                if label is not None and manifest.classes:
                    grouped.setdefault(manifest.classes[label], []).append(key)
        return grouped

    def show(self, key: str, note: str = "", quarter_turns: int = 0, mirrored: bool = False) -> Thumbnail:
        """The image of `key`, small, turned as `thumbnail` does it."""
        place = self.places.get(key)
        return thumbnail(key, place[0].image(place[1]) if place else None, note, quarter_turns, mirrored)

    def draw(self, title: str, name: str, num_images: int) -> GalleryRow:
        """`num_images` of class `name`, drawn by a fixed seed: nobody picked them."""
        keys = self.keys_by_class.get(name, [])
        drawn = random.Random(DRAW_SEED).sample(keys, min(num_images, len(keys)))
        return GalleryRow(title, len(keys), [self.show(key) for key in drawn], self.missing_shards)


def gallery(selection: Run, classes: list[str], per_class: int) -> dict[str, list[GalleryRow]]:
    """Per class: real, random, selective (each drawn by a fixed seed) and rejected ones, the farthest first."""
    assert selection.manifest
    parents = parent_directories(selection.directory, selection.manifest)
    rows = {"real": ImageSet(path for key, path in parents.items() if key.startswith("real."))}
    for kind in ("random", "selective"):
        names = [name for name in selection.datasets if name.startswith(f"{kind}-")]
        if names:
            widest = max(names, key=lambda name: float(name.removeprefix(f"{kind}-")))
            rows[widest] = ImageSet([selection.directory / widest])
    sampled = [path for key, path in parents.items() if key.startswith("candidates.")]
    candidates = ImageSet([*sampled, selection.directory / "topped-up"])
    rejected = _rejected(RunDir(selection.directory).index)
    return {
        name: [
            *(images.draw(title, name, per_class) for title, images in rows.items()),
            GalleryRow(
                "rejected",
                len(rejected.get(name, [])),
                [candidates.show(key, note) for key, note in rejected.get(name, [])[:per_class]],
                candidates.missing_shards,
            ),
        ]
        for name in classes
    }


def gallery_of_arms(evaluation: Run, classes: list[str], per_class: int) -> dict[str, list[GalleryRow]]:
    """Per class, where nothing was selected: real images, and those of every arm, each drawn by a fixed seed."""
    assert evaluation.manifest
    parents = parent_directories(evaluation.directory, evaluation.manifest)
    rows = {"real": ImageSet([parents["train"]] if "train" in parents else [])}
    for key, path in parents.items():
        if key.startswith(_ARM) and key.endswith(_SYNTHETIC):
            rows[key.removeprefix(_ARM).removesuffix(_SYNTHETIC)] = ImageSet([path])
    return {name: [images.draw(title, name, per_class) for title, images in rows.items()] for name in classes}


WHY_REJECTED = {"confidence": "not confident", "entropy": "not certain", "closer_half": "of the farther half"}
"""By gate; the gate of the nearest centroid says which that is."""


def _rejected(index: Path) -> dict[str, list[tuple[str, str]]]:
    """Class name to (key, note) of the candidates that failed a gate, the farthest from their centroid first."""
    columns = ["key", "class", "target_distance", "nearest_class", "fell_at", "selected"]
    grouped: dict[str, list[tuple[str, str]]] = {}
    rows = pq.read_table(index, columns=columns).to_pylist()
    for row in sorted(rows, key=lambda row: (-row["target_distance"], row["key"])):
        if row["fell_at"] is not None:
            note = WHY_REJECTED.get(row["fell_at"], f"nearest: {row['nearest_class']}")
            filled = "" if row["selected"] is None else "; taken all the same, too few passed"
            grouped.setdefault(row["class"], []).append((row["key"], note + filled))
    return grouped


def nearest_pairs(evaluation: Run, pairs: list[NearestPair]) -> dict[str, list[ShownPair]]:
    """By space the closest pairs of all, relatively, at most `NEAREST_SHOWN`."""
    real, synthetic = _scored_images(evaluation)
    shown: dict[str, list[ShownPair]] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.space, pair.relative, pair.distance, pair.synthetic)):
        found = shown.setdefault(pair.space, [])
        if len(found) < NEAREST_SHOWN:
            turned = real.show(pair.real, quarter_turns=pair.quarter_turns, mirrored=pair.mirrored)
            found.append(ShownPair(pair, synthetic.show(pair.synthetic), turned))
    return shown


def failure_gallery(evaluation: Run, failures: list[Failure]) -> dict[str, list[ShownFailure]]:
    """By kind, in the file's order: what the judge takes for another class, and what lies far from its own."""
    synthetic = _scored_images(evaluation)[1]
    shown: dict[str, list[ShownFailure]] = {}
    for failure in failures:
        shown.setdefault(failure.kind, []).append(ShownFailure(failure, synthetic.show(failure.synthetic)))
    return shown


def _scored_images(evaluation: Run) -> tuple[ImageSet, ImageSet]:
    """The training images, and every set of synthetic ones."""
    assert evaluation.manifest
    parents = parent_directories(evaluation.directory, evaluation.manifest)
    synthetic = (path for key, path in parents.items() if key == "candidates" or key.endswith(_SYNTHETIC))
    return ImageSet([parents["train"]] if "train" in parents else []), ImageSet(synthetic)
