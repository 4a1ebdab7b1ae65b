"""B1: samples that lie in memory into tars on disk, against webdataset's writer and Python's tarfile.

Two contests. *bare*: jpg + cls + json as bytes, the archive alone, without fsync and hash. *whole*: jpg + json from a
dict, with sha256 and fsync, as a shard is published; ours writes its sidecar besides.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import webdataset

from bench.compare import Contestant, Outcome, OutputsDifferError, compare
from bench.samples import Sample
from hdtrain.formats.atomic import canonical_json, sha256_file
from hdtrain.formats.shards import ShardReader, ShardWriter
from hdtrain.formats.tar import TarWriter

Writer = Callable[[Path, Sequence[Sample]], None]
PER_SHARD = 1000
OURS, DEFAULT, MTIME0, TARFILE = "ours", "wds.TarWriter", "wds.TarWriter mtime=0", "tarfile"


def bare_ours(path: Path, samples: Sequence[Sample]) -> None:
    """`hdtrain.formats.tar.TarWriter`."""
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for sample in samples:
            writer.add(f"{sample.key}.jpg", sample.jpg)
            writer.add(f"{sample.key}.cls", sample.cls)
            writer.add(f"{sample.key}.json", sample.json)
        writer.close()


def bare_webdataset(mtime: int | None) -> Writer:
    """`webdataset.TarWriter`, which passes bytes through its encoder as they are."""

    def write(path: Path, samples: Sequence[Sample]) -> None:
        with path.open("wb") as stream:
            writer = webdataset.TarWriter(stream, mtime=mtime)
            for sample in samples:
                writer.write({"__key__": sample.key, "jpg": sample.jpg, "cls": sample.cls, "json": sample.json})
            writer.close()

    return write


def bare_tarfile(path: Path, samples: Sequence[Sample]) -> None:
    """Python's `tarfile`."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, content in sample.members().items():
                _add(tar, name, content)


def whole_ours(path: Path, samples: Sequence[Sample]) -> None:
    """`hdtrain.formats.shards.ShardWriter`: hashes in a thread of its own, fsyncs, renames, writes the sidecar."""
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample.key, "jpg", sample.jpg, sample.meta, sample.label)


def whole_webdataset(mtime: int | None) -> Writer:
    """`webdataset.TarWriter` into a file that hashes what it is given; fsync at the end."""

    def write(path: Path, samples: Sequence[Sample]) -> None:
        with _Hashing(path) as stream:
            writer = webdataset.TarWriter(stream, mtime=mtime)
            for sample in samples:
                writer.write({"__key__": sample.key, "jpg": sample.jpg, "json": sample.meta})
            writer.close()

    return write


def whole_tarfile(path: Path, samples: Sequence[Sample]) -> None:
    """Python's `tarfile` into the same kind of file."""
    with _Hashing(path) as stream, tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for sample in samples:
            _add(tar, f"{sample.key}.jpg", sample.jpg)
            _add(tar, f"{sample.key}.json", canonical_json(sample.meta))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


class _Hashing:
    """A file that is hashed as it is written, and fsynced."""

    def __init__(self, path: Path):
        self.path, self.digest = path, hashlib.sha256()

    def __enter__(self) -> "_Hashing":
        self._stream: IO[bytes] = self.path.open("wb")
        return self

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def __exit__(self, *error: object) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self.path.with_suffix(".sha256").write_text(self.digest.hexdigest())


@dataclass
class Writing:
    """One writer as a contestant: its folder, and the hashes that its shards had so far."""

    name: str
    write: Writer
    folder: Path
    shards: Sequence[Sequence[Sample]]
    exts: tuple[str, ...]
    compare_members: Callable[[str, Iterator[tuple[str, bytes]], Sequence[Sample], Sequence[str]], None] | None = None
    """Default: `same_members`."""
    seen: set[tuple[str, ...]] = field(default_factory=set)

    def contestant(self) -> Contestant:
        """For `compare`."""
        return Contestant(self.name, self.run, self.prepare, self.check)

    def paths(self) -> list[Path]:
        """One tar a shard."""
        return [self.folder / f"{number:06d}.tar" for number in range(len(self.shards))]

    def prepare(self) -> None:
        """An empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def run(self) -> None:
        """Write every shard."""
        for path, samples in zip(self.paths(), self.shards, strict=True):
            self.write(path, samples)

    def check(self, _: object) -> None:
        """Look into archives that have not been seen; free the disk."""
        hashes = tuple(map(sha256_file, self.paths()))
        if hashes not in self.seen:
            for path, samples in zip(self.paths(), self.shards, strict=True):
                (self.compare_members or same_members)(self.name, read_with_tarfile(path), samples, self.exts)
                if self.name == OURS:
                    check_ours(path, samples, self.exts)
        self.seen.add(hashes)
        shutil.rmtree(self.folder)


def check_ours(path: Path, samples: Sequence[Sample], exts: tuple[str, ...]) -> None:
    """Our archive as webdataset and GNU tar read it, and by its sidecar where it has one.

    Raises:
        OutputsDifferError: a name or a byte differs.
    """
    same_members("ours by webdataset", read_with_webdataset(path), samples, exts)
    same_members("ours by GNU tar", read_with_gnu_tar(path), samples, exts)
    if path.with_suffix(".json").exists():
        reader = ShardReader(path)
        if reader.sidecar.sha256 != sha256_file(path):
            raise OutputsDifferError(f"{path}: the sidecar's sha256 is not the file's")
        if [bytes(reader.image(i)) for i in range(len(samples))] != [sample.jpg for sample in samples]:
            raise OutputsDifferError(f"{path}: the sidecar's offsets do not lead to the images")


def same_members(who: str, found: Iterator[tuple[str, bytes]], samples: Sequence[Sample], exts: Sequence[str]) -> None:
    """Compare an archive's members with the samples; JSON by its meaning, all else by its bytes.

    Raises:
        OutputsDifferError: a name or content differs; says which.
    """
    expected = {name: content for sample in samples for name, content in sample.members(exts).items()}
    members = dict(found)
    if members.keys() != expected.keys():
        raise OutputsDifferError(f"{who}: {len(members)} members, expected {len(expected)}, or other names")
    for name, content in expected.items():
        got = members[name]
        if got != content and not (name.endswith(".json") and json.loads(got) == json.loads(content)):
            raise OutputsDifferError(f"{who}: {name} differs: {len(got)} bytes, expected {len(content)}")


def read_with_tarfile(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member."""
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            opened = tar.extractfile(info)
            yield info.name, opened.read() if opened else b""


def read_with_webdataset(path: Path) -> Iterator[tuple[str, bytes]]:
    """The same through `webdataset.WebDataset`."""
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        for ext, content in sample.items():
            if not ext.startswith("__"):
                yield f"{sample['__key__']}.{ext}", content


def read_with_gnu_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The same after `tar -xf`."""
    folder = path.with_suffix(".extracted")
    folder.mkdir()
    done = subprocess.run(["tar", "-xf", str(path), "-C", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise OutputsDifferError(f"GNU tar on {path}: exit code {done.returncode}: {done.stderr.strip()}")
    for file in folder.iterdir():
        yield file.name, file.read_bytes()
    shutil.rmtree(folder)


def run(samples: Sequence[Sample], folder: Path, rounds: int) -> list[Outcome]:
    """Both contests of B1, written below `folder`.

    Raises:
        OutputsDifferError: an archive does not hold the samples, or ours is not the same in every round.
    """
    bare: dict[str, Writer] = {
        OURS: bare_ours,
        DEFAULT: bare_webdataset(None),
        MTIME0: bare_webdataset(0),
        TARFILE: bare_tarfile,
    }
    whole: dict[str, Writer] = {
        OURS: whole_ours,
        DEFAULT: whole_webdataset(None),
        MTIME0: whole_webdataset(0),
        TARFILE: whole_tarfile,
    }
    mean = sum(len(sample.jpg) for sample in samples) / len(samples) / 1000
    payload = f"{PER_SHARD} samples a shard, JPEG of {mean:.1f} kB in the mean"
    first = _contest("pack, archive alone: jpg + cls + json", bare, samples, ("jpg", "cls", "json"), folder, rounds)
    first.expect(OURS, DEFAULT, 7.0)
    first.expect(OURS, MTIME0, 4.5)
    first.notes += [
        f"{payload}; neither sha256 nor fsync",
        f"ours / tarfile: {first.ratio(OURS, TARFILE).median:.3g} ×",
    ]
    second = _contest("pack, whole shard: jpg + json", whole, samples, ("jpg", "json"), folder, rounds)
    second.notes += [
        f"{payload}; all encode the JSON, hash the tar (sha256) and fsync it; ours also writes and fsyncs a sidecar",
        "ours hashes in a second thread, the others as they write",
        *(f"ours / {name}: {second.ratio(OURS, name).median:.3g} ×" for name in (DEFAULT, MTIME0, TARFILE)),
    ]
    return [first, second]


def _contest(
    title: str, writers: dict[str, Writer], samples: Sequence[Sample], exts: tuple[str, ...], folder: Path, rounds: int
) -> Outcome:
    shards = [samples[first : first + PER_SHARD] for first in range(0, len(samples), PER_SHARD)]
    writings = [
        Writing(name, write, folder / f"writer-{i}", shards, exts) for i, (name, write) in enumerate(writers.items())
    ]
    outcome = compare(title, "samples/s", len(samples), [writing.contestant() for writing in writings], rounds)
    if len(writings[0].seen) != 1:
        raise OutputsDifferError(f"{title}: ours wrote other bytes in another round")
    same = [writing.name for writing in writings if len(writing.seen) == 1]
    other = [writing.name for writing in writings if len(writing.seen) > 1]
    outcome.notes += [
        f"the same bytes in every round: {', '.join(same)}" + (f"; not: {', '.join(other)}" if other else ""),
        "ours read back by webdataset, GNU tar and tarfile, the others by tarfile: every member as it was put in",
    ]
    return outcome
