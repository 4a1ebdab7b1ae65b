"""Features on disk, a file a shard: computed once, by whichever process claims it, for any run that asks again.

A file's name is a hash of everything that its content depends on: the shard's sha256, the encoder's name, weights and
input size, the size that images are brought to first, and the batch size. So a folder of features can serve several
runs, other ratios or gates cost no embedding, and a data set that grew costs its new shards alone. Nothing here holds
more than one shard's features in memory. Sums over a whole set: `hdtrain.evaluation.moments.moments_of`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8

from hdtrain.data.exactly_once import iterate_shard
from hdtrain.data.images import ImageBatch
from hdtrain.data.pool import UNLABELLED
from hdtrain.distributed.collectives import use_reproducible_kernels
from hdtrain.distributed.shared_work import SharedRun, SharedUnit
from hdtrain.errors import DataError, ShardError
from hdtrain.features.encoders import Encoder
from hdtrain.formats.atomic import canonical_json, link_or_copy, sha256_bytes
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.npy import write_npy
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.shards import ShardReader

FOLDER = "features"
VERSION = 1
"""Of what a file holds. Another number, and all features are computed anew."""
Listing = tuple[list[str], Int64[np.ndarray, " n"]]
"""Keys and labels (−1: unlabelled)."""


@dataclass(frozen=True)
class Piece:
    """Images that are embedded together, one features file: a shard, or whatever stands for one."""

    digest: str
    """Hash of the images' content; what else it came from makes no difference."""
    samples: int
    batches: Callable[[int, int], Iterable[ImageBatch]]
    """From batch size and resolution to every image in order, in full batches but for the last."""
    listing: Callable[[], Listing]


@dataclass(frozen=True)
class FeatureStore:
    """A folder of features files, and this process among those that fill it."""

    directory: Path
    shared: SharedRun
    earlier: tuple[Path, ...] = ()
    """Folders of runs that were moved aside: what lies there is linked, not computed."""

    @classmethod
    def open(cls, shared: SharedRun, folder: Path | None = None) -> "FeatureStore":
        """`RUN/features/`, or a folder that several runs share.

        Raises:
            DataError: the folder is a file.
        """
        use_reproducible_kernels()
        if folder is not None and folder.exists() and not folder.is_dir():
            raise DataError(f"features: {folder} is a file; name a folder, one that need not be there yet")
        if folder is not None:
            return cls(folder, shared)
        run = shared.run.path
        return cls(run / FOLDER, shared, tuple(sorted(run.parent.glob(f"{run.name}.previous-*/{FOLDER}"))))

    @property
    def folders(self) -> list[Path]:
        """In which nobody else writes: a folder of several runs is not one."""
        return [self.directory] if self.directory.parent == self.shared.run.path else []

    def embed(
        self, title: str, pieces: Sequence[Piece], encoder: Encoder, batch_size: int, resolution: int
    ) -> "FeatureSet":
        """Features of all pieces in their order, when all are there, whoever made them.

        Raises:
            DataError: an image cannot be decoded, or the encoder gives NaN or infinity.
            ShardError: a shard is missing, damaged, or not the one that the manifest names.
        """
        paths = [self.directory / f"{feature_name(piece, encoder, batch_size, resolution)}.npy" for piece in pieces]
        features = FeatureSet(tuple(pieces), tuple(paths), encoder.dim)
        once = dict(zip(paths, pieces, strict=True))
        units = [
            SharedUnit(path.stem, piece.samples, (path,), partial(is_whole, path, piece.samples, encoder.dim))
            for path, piece in once.items()
        ]
        todo = list(once.items())

        def make(number: int, _: None) -> None:
            path, piece = todo[number]
            if self._take_over(path, piece.samples, encoder.dim):
                return
            rows = _embed(piece, encoder, batch_size, resolution)
            if not np.isfinite(rows).all():
                key = piece.listing()[0][int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
                raise DataError(f"encoder {encoder.name} gives NaN or infinity for {key}; check its weights")
            self.write(path, rows)

        self.shared.make_all(title, units, make)
        return features

    def _take_over(self, path: Path, samples: int, dim: int) -> bool:
        """Whether a features file was in an earlier run, from where it is linked."""
        for folder in self.earlier:
            if is_whole(folder / path.name, samples, dim):
                link_or_copy(folder / path.name, path)
                return True
        return False

    def write(self, path: Path, array: np.ndarray) -> None:
        """Publish an array by rename, under a temporary name that no other process has: other runs may write too."""
        write_npy(path, array, self.shared.writer)


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images, in the order of its shards; on disk, and read a shard at a time."""

    pieces: tuple[Piece, ...]
    paths: tuple[Path, ...]
    """One `.npy` a piece: float32 (samples, dim)."""
    dim: int

    def __len__(self) -> int:
        return sum(self.samples)

    @property
    def samples(self) -> list[int]:
        """Images of every piece."""
        return [piece.samples for piece in self.pieces]

    @cached_property
    def _listing(self) -> Listing:
        keys: list[str] = []
        labels = [np.empty(0, np.int64)]
        for piece in self.pieces:
            more, of = piece.listing()
            keys += more
            labels.append(of)
        return keys, np.concatenate(labels)

    @property
    def keys(self) -> list[str]:
        """Of every image."""
        return self._listing[0]

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Of every image; −1: unlabelled."""
        return self._listing[1]

    @cached_property
    def starts(self) -> Int64[np.ndarray, " n"]:
        """Row of every shard's first image, and the number of images."""
        return np.cumsum([0, *self.samples])

    def labels_of(self, number: int) -> Int64[np.ndarray, " b"]:
        """Of the images of one shard."""
        return self.labels[self.starts[number] : self.starts[number + 1]]

    def shard(self, number: int) -> Float32[np.ndarray, "b d"]:
        """The features of one shard, in memory."""
        return np.asarray(np.load(self.paths[number], allow_pickle=False))

    def blocks(self) -> Iterator[Float32[np.ndarray, "b d"]]:
        """The features in order, one shard at a time."""
        for number in range(len(self.paths)):
            yield self.shard(number)

    def rows(self, indices: Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Some rows in the order given; each shard is opened once, and only those rows of it are read."""
        indices = np.asarray(indices, np.int64)
        gathered = np.empty((len(indices), self.dim), np.float32)
        of = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(of):
            own = np.flatnonzero(of == number)
            mapped = np.load(self.paths[number], mmap_mode="r", allow_pickle=False)
            gathered[own] = mapped[indices[own] - self.starts[number]]
        return gathered


def embed_dataset(
    title: str,
    dataset: tuple[Path, Manifest],
    encoder: Encoder,
    store: FeatureStore,
    batch_size: int,
    resolution: int,
) -> FeatureSet:
    """Features of a published image data set, as `FeatureStore.embed`: float32, not normalised."""
    directory, manifest = dataset
    return store.embed(
        title, [shard_piece(directory, entry) for entry in manifest.shards], encoder, batch_size, resolution
    )


def shard_piece(directory: Path, entry: ShardEntry) -> Piece:
    """A published shard as a piece."""
    path = directory / entry.name
    return Piece(entry.sha256, entry.samples, partial(_read, path, entry), partial(_list, path))


def _read(path: Path, entry: ShardEntry, batch_size: int, resolution: int) -> Iterator[ImageBatch]:
    reader = ShardReader(path, retry_sec=PATIENCE_SEC)
    if reader.sidecar.sha256 != entry.sha256:
        raise ShardError(
            f"{path}: its sidecar is of another shard (sha256 {reader.sidecar.sha256[:12]}…, the manifest says "
            f"{entry.sha256[:12]}…); run `hdtrain verify`"
        )
    yield from iterate_shard(reader, batch_size, resolution)


def _list(path: Path) -> Listing:
    sidecar = ShardReader(path, retry_sec=PATIENCE_SEC).sidecar
    return sidecar.keys, np.array([UNLABELLED if label is None else label for label in sidecar.labels], np.int64)


def feature_name(piece: Piece, encoder: Encoder, batch_size: int, resolution: int) -> str:
    """Hash of all that the features of a piece depend on."""
    depends: list[Any] = [VERSION, piece.digest, encoder.name, encoder.weights_sha256]
    return sha256_bytes(canonical_json([*depends, encoder.resolution, resolution, batch_size]))[:40]


def is_whole(path: Path, samples: int, dim: int) -> bool:
    """Whether a features file is there with all its rows; one that was cut off or is something else is not."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return isinstance(mapped, np.ndarray) and (mapped.shape, mapped.dtype) == ((samples, dim), np.float32)


def _embed(piece: Piece, encoder: Encoder, batch_size: int, resolution: int) -> Float32[np.ndarray, "n d"]:
    features = np.empty((piece.samples, encoder.dim), np.float32)
    first = 0
    for batch in piece.batches(batch_size, resolution):
        count = len(batch.images)
        # Kernels give other bits at other shapes, so every batch has the same one; what stands beside an image in it
        # makes no difference.
        features[first : first + count] = encoder.embed(padded(batch.images, batch_size)).cpu().numpy()[:count]
        first += count
    if first != piece.samples:
        raise DataError(f"{first} images where {piece.samples} were expected; run `hdtrain verify` on the data set")
    return features


def padded(images: UInt8[np.ndarray, "n h w 3"], batch_size: int) -> UInt8[np.ndarray, "b h w 3"]:
    """A batch filled up with black images."""
    missing = batch_size - len(images)
    return images if missing <= 0 else np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
