"""One published shard against its manifest entry, its sidecar and itself: one line for every problem."""

import json
import mmap
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.shards import Sidecar, sidecar_path
from hdtrain.formats.tar import BLOCK, END, member_header
from sharding.images import UnusableError, decode


def check_shard(
    directory: Path,
    entry: ShardEntry,
    manifest: Manifest,
    owners: dict[str, str],
    chosen: Collection[int] | None,
    decode_images: bool,
    pool: ThreadPoolExecutor,
) -> tuple[Sidecar | None, list[str]]:
    """The shard's sidecar (None: unreadable) and its problems.

    Args:
        directory: the data set's run directory.
        entry: the shard in the manifest.
        manifest: of the data set.
        owners: sha256 to shard name, to recognise the sidecar of another shard.
        chosen: numbers of the samples to look at; None: all of them, and the checksum.
        decode_images: look into the images too.
        pool: decodes.
    """
    tar = directory / entry.name
    try:
        sidecar = Sidecar.read(sidecar_path(tar))
    except ShardError as error:
        return None, [str(error), *_check_tar(tar, entry, sums=chosen is None)]
    problems = [*_check_sidecar(tar, entry, sidecar, owners), *_check_tar(tar, entry, sums=chosen is None)]
    if tar.exists() and sidecar.sha256 == entry.sha256 and is_consistent(sidecar):
        problems += _check_members(tar, sidecar, manifest, chosen, decode_images, pool)
    return sidecar, problems


def _check_sidecar(tar: Path, entry: ShardEntry, sidecar: Sidecar, owners: dict[str, str]) -> Iterator[str]:
    path = sidecar_path(tar)
    if sidecar.sha256 != entry.sha256:
        other = owners.get(sidecar.sha256)
        found = f"is the sidecar of {other}" if other else f"says sha256 {sidecar.sha256[:12]}…"
        yield f"{path}: {found}; the manifest has {entry.name} as {entry.sha256[:12]}…"
        return
    if not is_consistent(sidecar):
        yield f"{path}: its columns do not have {sidecar.samples} members each"
    if sidecar.samples != entry.samples:
        yield f"{path}: says {sidecar.samples} samples, the manifest {entry.samples}"
    if sidecar.bytes != entry.bytes:
        yield f"{path}: says {sidecar.bytes} bytes, the manifest {entry.bytes}"


def is_consistent(sidecar: Sidecar) -> bool:
    """Whether every column has a member for every sample."""
    columns = (sidecar.keys, sidecar.exts, sidecar.offsets, sidecar.sizes, sidecar.labels)
    return {len(column) for column in columns} == {sidecar.samples}


def _check_tar(tar: Path, entry: ShardEntry, sums: bool) -> Iterator[str]:
    try:
        size = tar.stat().st_size
        if size != entry.bytes:
            what = "truncated" if size < entry.bytes else "longer than it was"
            yield f"{tar}: {size} bytes, the manifest says {entry.bytes}: {what}"
        elif sums and (digest := sha256_file(tar)) != entry.sha256:
            yield f"{tar}: sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…: altered since it was written"
    except FileNotFoundError:
        yield f"{tar}: shard is missing"
    except OSError as error:
        yield f"{tar}: shard cannot be read: {error.strerror}"


def _check_members(
    tar: Path,
    sidecar: Sidecar,
    manifest: Manifest,
    chosen: Collection[int] | None,
    decode_images: bool,
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    """Every member at its offset; goes on after a wrong checksum, to say which samples are hit."""
    with tar.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def check(index: int) -> list[str]:
        return list(_check_sample(view, index, sidecar, manifest, decode_images))

    numbers = range(sidecar.samples) if chosen is None else sorted(chosen)
    for index, problems in zip(numbers, pool.map(check, numbers), strict=True):
        yield from (f"{tar}: sample {sidecar.keys[index]}: {problem}" for problem in problems)
    if view[-len(END) :] != END and len(view) == sidecar.bytes:
        yield f"{tar}: no end-of-archive mark"
    view.close()


def _check_sample(
    view: mmap.mmap, index: int, sidecar: Sidecar, manifest: Manifest, decode_images: bool
) -> Iterator[str]:
    key, ext, start, size = sidecar.keys[index], sidecar.exts[index], sidecar.offsets[index], sidecar.sizes[index]
    header = start + size + (-size % BLOCK)
    if header + BLOCK > len(view):
        yield "lies beyond the end of the file"
        return
    if not _has_header(view, start - BLOCK, f"{key}.{ext}", size):
        yield f"no member {key}.{ext} of {size} bytes at offset {start}"
        return
    meta = _read_meta(view, header, key)
    if meta is None:
        yield f"no readable {key}.json after the image"
    else:
        expected = {"key": key, "class_index": sidecar.labels[index], "split": manifest.split}
        for name, value in expected.items():
            if meta.get(name, value) != value:
                yield f"{key}.json has {name} {meta[name]!r}, sidecar and manifest say {value!r}"
    if decode_images:
        try:
            decoded = decode(view[start : start + size], "reject")
        except UnusableError as error:
            yield f"image cannot be decoded: {error}"
            return
        height, width, _ = decoded.pixels.shape
        if decoded.ext != ext:
            yield f"image is not an 8-bit RGB {ext}"
        if meta and (meta.get("width", width), meta.get("height", height)) != (width, height):
            yield f"image is {width}×{height}, {key}.json says {meta.get('width')}×{meta.get('height')}"


def _has_header(view: mmap.mmap, at: int, name: str, size: int) -> bool:
    try:
        return view[at : at + BLOCK] == member_header(name, size)
    except ValueError:  # a name or size that no header can hold: the sidecar was edited
        return False


def _read_meta(view: mmap.mmap, header: int, key: str) -> dict[str, Any] | None:
    try:
        size = int(view[header + 124 : header + 135], 8)
        if not _has_header(view, header, f"{key}.json", size):
            return None
        meta = json.loads(view[header + BLOCK : header + BLOCK + size])
    except ValueError:
        return None
    return meta if isinstance(meta, dict) else None
