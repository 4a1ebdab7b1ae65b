"""Image shards: plain WebDataset tars with a sidecar of member offsets, so that a sample is one read."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import atomic_file, canonical_json, write_bytes
from hdtrain.formats.hashed_file import HashedFile
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.read_files import ReadFile, patiently
from hdtrain.formats.tar import BLOCK, TarWriter

SIDECAR_VERSION = 1


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

    def write(self, path: Path, writer: str = "") -> None:
        """Write atomically, a column a line."""
        columns = {**self.__dict__, "class_counts": self.class_counts}
        lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in columns.items()]
        write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode(), writer)

    @classmethod
    def read(cls, path: Path) -> "Sidecar":
        """Read a sidecar.

        Raises:
            ShardError: missing, unreadable, or of another version.
        """
        try:
            return parse_sidecar(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise ShardError(
                f"{path}: sidecar is missing, so the shard is not complete; "
                "move the run directory away and run the stage again"
            ) from None
        except OSError as error:
            raise ShardError(f"{path}: sidecar cannot be read: {error}") from None


def parse_sidecar(data: bytes, source: str) -> Sidecar:
    """The sidecar in `data`, which came from `source`.

    Raises:
        ShardError: unreadable, or of another version.
    """
    try:
        tree = json.loads(data)
        tree.pop("class_counts")
        sidecar = Sidecar(**tree)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(f"{source}: sidecar cannot be read: {error}") from None
    if sidecar.version != SIDECAR_VERSION:
        raise ShardError(f"{source}: sidecar version {sidecar.version}, this hdtrain reads {SIDECAR_VERSION}")
    return sidecar


class ShardWriter:
    """Write one shard under a temporary name; leaving the `with` block publishes tar, then sidecar.

    An exception inside the block leaves nothing behind; `path` may be changed there. `writer` tells processes
    apart that may write the same shard.
    """

    def __init__(self, path: Path, writer: str = ""):
        self.path, self.sidecar, self._writer = path, Sidecar(), writer
        self._publishing = self._publish()

    @contextlib.contextmanager
    def _publish(self) -> Iterator[None]:
        with contextlib.closing(HashedFile()) as file:
            with atomic_file(self.path, self._writer, lambda: self.path) as file.stream:
                self._tar = TarWriter(file)
                yield
                self._tar.close()
                file.hash_written()  # while the disk syncs
            self.sidecar.bytes, self.sidecar.sha256 = self._tar.offset, file.hexdigest()
            self.sidecar.write(sidecar_path(self.path), self._writer)

    def __enter__(self) -> "ShardWriter":
        self._publishing.__enter__()
        return self

    def add(self, key: str, ext: str, image: bytes, meta: dict[str, Any], label: int | None = None) -> None:
        """Add `KEY.ext` (bytes as they are) and `KEY.json`, adjacent as WebDataset wants them."""
        if "." in key:
            raise ValueError(f"sample key with a dot, which WebDataset would cut: {key}")
        offset = self._tar.add(f"{key}.{ext}", image)
        self._tar.add(f"{key}.json", canonical_json(meta))
        sidecar = self.sidecar
        sidecar.keys.append(key)
        sidecar.exts.append(ext)
        sidecar.offsets.append(offset)
        sidecar.sizes.append(len(image))
        sidecar.labels.append(label)
        sidecar.samples += 1

    def add_member(self, name: str, data: bytes) -> int:
        """Add a bare member (record shards); return the offset of its data."""
        return self._tar.add(name, data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._publishing.__exit__(kind, error, trace)


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
    """One shard. Nothing is read before it is asked for; safe to share between threads.

    Args:
        tar: the shard.
        sidecar: its sidecar, where that does not lie beside it.
        retry_sec: for how long a read that fails is tried again.
    """

    def __init__(self, tar: Path, sidecar: Path | None = None, retry_sec: float = 0.0):
        self.path, self.retry_sec = tar, retry_sec
        self._sidecar_path = sidecar or sidecar_path(tar)

    @cached_property
    def sidecar(self) -> Sidecar:
        """The member offsets.

        Raises:
            ShardError: missing, unreadable, or of another version.
        """
        path = self._sidecar_path
        if self.retry_sec == 0:
            return Sidecar.read(path)
        data = patiently(path.read_bytes, f"{path}: sidecar cannot be read", self.retry_sec)
        return parse_sidecar(data, str(path))

    @cached_property
    def file(self) -> ReadFile:
        """The tar."""
        return ReadFile(self.path, self.sidecar.bytes, self.retry_sec)

    def image(self, index: int) -> bytes:
        """The encoded image of sample `index`.

        Raises:
            ShardError: the shard is missing, unreadable or truncated.
        """
        sidecar = self.sidecar
        return self.file.read(sidecar.sizes[index], sidecar.offsets[index], f"sample {sidecar.keys[index]}")

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's `KEY.json`: the member after its image.

        Raises:
            ShardError: as `image`, or no JSON is there.
        """
        sidecar = self.sidecar
        what = f"{sidecar.keys[index]}.json"
        end = sidecar.offsets[index] + sidecar.sizes[index]
        header = end + -end % BLOCK
        try:
            size = int(self.file.read(BLOCK, header, what)[124:135], 8)
            meta: dict[str, Any] = json.loads(self.file.read(size, header + BLOCK, what))
        except ValueError:
            raise ShardError(f"{self.path}: {what}: not where it should be; run `hdtrain verify`") from None
        return meta

    def close(self) -> None:
        """Forget the sidecar and let go of the file; both come back when they are asked for."""
        for name in ("sidecar", "file"):
            self.__dict__.pop(name, None)


def open_shards(directory: Path, manifest: Manifest, retry_sec: float = 0.0) -> list[ShardReader]:
    """Readers of a published artefact's shards, in the manifest's order."""
    return [ShardReader(directory / shard.name, retry_sec=retry_sec) for shard in manifest.shards]
