"""Image shards: plain WebDataset tars with a sidecar of member offsets, so that a sample is one slice of an mmap."""

import hashlib
import json
import mmap
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import atomic_file, canonical_json, write_json
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.tar import TarWriter

SIDECAR_VERSION = 1


class _HashingStream:
    """Writes through and hashes, so that the shard's sha256 costs no second read."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.stream.write(data)


@dataclass
class Sidecar:
    """`NAME.json` beside `NAME.tar`. Its presence means that the shard is complete."""

    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    keys: list[str] = field(default_factory=list)
    exts: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    """Class index, None where unlabelled."""
    failed: dict[str, int] = field(default_factory=dict)
    """Inputs meant for this shard that were rejected, by reason."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Record shards only: member arrays with offset, dtype and shape."""
    version: int = SIDECAR_VERSION

    @property
    def class_counts(self) -> dict[str, int]:
        """Samples by class index."""
        return {str(label): count for label, count in sorted(Counter(x for x in self.labels if x is not None).items())}

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_json(path, {**self.__dict__, "class_counts": self.class_counts})

    @classmethod
    def read(cls, path: Path) -> "Sidecar":
        """Read a sidecar.

        Raises:
            ShardError: missing, unreadable, or of another version.
        """
        try:
            tree = json.loads(path.read_bytes())
            tree.pop("class_counts")
            sidecar = cls(**tree)
        except FileNotFoundError:
            raise ShardError(
                f"{path}: sidecar is missing, so the shard is not complete; "
                "move the run directory away and run the stage again"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ShardError(f"{path}: sidecar cannot be read: {error}") from None
        if sidecar.version != SIDECAR_VERSION:
            raise ShardError(f"{path}: sidecar version {sidecar.version}, this hdtrain reads {SIDECAR_VERSION}")
        return sidecar


class ShardWriter:
    """Write one shard under a temporary name; leaving the `with` block publishes tar, then sidecar.

    An exception inside the block leaves nothing behind.
    """

    def __init__(self, path: Path):
        self.path, self.sidecar = path, Sidecar()
        self._file = atomic_file(path)

    def __enter__(self) -> "ShardWriter":
        self._hashing = _HashingStream(self._file.__enter__())
        self._tar = TarWriter(self._hashing)  # type: ignore[arg-type]
        return self

    def add(self, key: str, ext: str, image: bytes, meta: dict[str, Any], label: int | None = None) -> None:
        """Add `KEY.ext` (bytes as they are) and `KEY.json`, adjacent as WebDataset wants them."""
        if "." in key:
            raise ValueError(f"sample key with a dot, which WebDataset would cut: {key}")
        offset = self._tar.add(f"{key}.{ext}", image)
        self._tar.add(f"{key}.json", canonical_json(meta))
        for column, value in zip(
            ("keys", "exts", "offsets", "sizes", "labels"), (key, ext, offset, len(image), label), strict=True
        ):
            getattr(self.sidecar, column).append(value)
        self.sidecar.samples += 1

    def add_member(self, name: str, data: bytes) -> int:
        """Add a bare member (record shards); return the offset of its data."""
        return self._tar.add(name, data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._tar.close()
        self._file.__exit__(kind, error, trace)
        if kind is None:
            self.sidecar.bytes, self.sidecar.sha256 = self._tar.offset, self._hashing.digest.hexdigest()
            self.sidecar.write(sidecar_path(self.path))


def sidecar_path(tar: Path) -> Path:
    """`NAME.tar` to `NAME.json`."""
    return tar.with_suffix(".json")


def is_complete(tar: Path) -> bool:
    """Both files are there; the sidecar is written last."""
    return sidecar_path(tar).exists() and tar.exists()


def shard_entry(tar: Path, run: Path) -> ShardEntry:
    """The manifest's line for a complete shard."""
    sidecar = Sidecar.read(sidecar_path(tar))
    return ShardEntry(
        name=str(tar.relative_to(run)), samples=sidecar.samples, bytes=sidecar.bytes, sha256=sidecar.sha256
    )


class ShardReader:
    """One shard through mmap. Opens the file at the first sample; safe to share between threads."""

    def __init__(self, tar: Path):
        self.path = tar

    @cached_property
    def sidecar(self) -> Sidecar:
        """The member offsets."""
        return Sidecar.read(sidecar_path(self.path))

    @cached_property
    def view(self) -> memoryview:
        """The whole tar, mapped.

        Raises:
            ShardError: missing, or not of the size that its sidecar says.
        """
        try:
            with self.path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ShardError(f"{self.path}: shard is missing") from None
        except (OSError, ValueError) as error:
            raise ShardError(f"{self.path}: shard cannot be opened: {error}") from None
        if len(mapped) != self.sidecar.bytes:
            raise ShardError(
                f"{self.path}: {len(mapped)} bytes, its sidecar says {self.sidecar.bytes}: truncated or of another one"
            )
        return memoryview(mapped)

    def image(self, index: int) -> memoryview:
        """The encoded image of sample `index`."""
        start = self.sidecar.offsets[index]
        return self.view[start : start + self.sidecar.sizes[index]]

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's `KEY.json`: the member after its image."""
        start = self.sidecar.offsets[index]
        size = self.sidecar.sizes[index]
        header = start + size + (-size % 512)
        length = int(bytes(self.view[header + 124 : header + 135]), 8)
        meta: dict[str, Any] = json.loads(bytes(self.view[header + 512 : header + 512 + length]))
        return meta


def open_shards(directory: Path, manifest: Manifest) -> list[ShardReader]:
    """Readers of a published artefact's shards, in the manifest's order."""
    return [ShardReader(directory / shard.name) for shard in manifest.shards]
