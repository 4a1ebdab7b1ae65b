"""Check published image shards against their manifest, their sidecars and themselves; collect every problem."""

import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.index import read_index
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import Sidecar, sidecar_path
from hdtrain.formats.tar import BLOCK, END, member_header
from hdtrain.progress import track
from sharding.images import UnusableError, decode


def verify(
    directory: Path, manifest: Manifest, decode_images: bool = True, threads: int | None = None
) -> dict[str, Any]:
    """Check an artefact of kind `images`; return `num_samples`, `num_shards`, `bytes` and `class_counts`.

    Raises:
        ShardError: with one line for every problem found.
    """
    problems: list[str] = []
    sidecars: dict[str, Sidecar] = {}
    owners = {entry.sha256: entry.name for entry in manifest.shards}
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for entry in track(manifest.shards, len(manifest.shards), "verify", "shard"):
            tar = directory / entry.name
            try:
                sidecar = Sidecar.read(sidecar_path(tar))
            except ShardError as error:
                problems.append(str(error))
                problems += _check_tar(tar, entry)
                continue
            sidecars[entry.name] = sidecar
            problems += _check_sidecar(tar, entry, sidecar, owners)
            problems += _check_tar(tar, entry)
            if tar.exists() and sidecar.sha256 == entry.sha256 and _is_consistent(sidecar):
                problems += _check_members(tar, sidecar, manifest, decode_images, pool)
    problems += _check_keys(sidecars)
    problems += _check_files(directory, manifest, sidecars)
    counts = _class_counts(sidecars, manifest)
    published = manifest.info.get("class_counts")
    if len(sidecars) == len(manifest.shards) and published is not None and dict(published) != counts:
        problems.append(f"class counts in the shards are {counts}, the manifest says {published}")
    if problems:
        plural = "s" if len(problems) > 1 else ""
        raise ShardError("\n  ".join([f"{directory}: {len(problems)} problem{plural} in the shards", *problems]))
    return {
        "num_samples": manifest.num_samples,
        "num_shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "class_counts": counts,
    }


def _check_sidecar(tar: Path, entry: ShardEntry, sidecar: Sidecar, owners: dict[str, str]) -> Iterator[str]:
    path = sidecar_path(tar)
    if sidecar.sha256 != entry.sha256:
        other = owners.get(sidecar.sha256)
        found = f"is the sidecar of {other}" if other else f"says sha256 {sidecar.sha256[:12]}…"
        yield f"{path}: {found}; the manifest has {entry.name} as {entry.sha256[:12]}…"
        return
    if not _is_consistent(sidecar):
        yield f"{path}: its columns do not have {sidecar.samples} members each"
    if sidecar.samples != entry.samples:
        yield f"{path}: says {sidecar.samples} samples, the manifest {entry.samples}"
    if sidecar.bytes != entry.bytes:
        yield f"{path}: says {sidecar.bytes} bytes, the manifest {entry.bytes}"


def _is_consistent(sidecar: Sidecar) -> bool:
    columns = (sidecar.keys, sidecar.exts, sidecar.offsets, sidecar.sizes, sidecar.labels)
    return {len(column) for column in columns} == {sidecar.samples}


def _check_tar(tar: Path, entry: ShardEntry) -> Iterator[str]:
    try:
        size = tar.stat().st_size
        if size != entry.bytes:
            what = "truncated" if size < entry.bytes else "longer than it was"
            yield f"{tar}: {size} bytes, the manifest says {entry.bytes}: {what}"
        elif (digest := sha256_file(tar)) != entry.sha256:
            yield f"{tar}: sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…: altered since it was written"
    except FileNotFoundError:
        yield f"{tar}: shard is missing"
    except OSError as error:
        yield f"{tar}: shard cannot be read: {error.strerror}"


def _check_members(
    tar: Path, sidecar: Sidecar, manifest: Manifest, decode_images: bool, pool: ThreadPoolExecutor
) -> Iterator[str]:
    """Every member at its offset; goes on after a wrong checksum, to say which samples are hit."""
    with tar.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def check(index: int) -> list[str]:
        return list(_check_sample(view, index, sidecar, manifest, decode_images))

    for key, problems in zip(sidecar.keys, pool.map(check, range(sidecar.samples)), strict=True):
        yield from (f"{tar}: sample {key}: {problem}" for problem in problems)
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


def _check_keys(sidecars: dict[str, Sidecar]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name, sidecar in sidecars.items():
        for key in sidecar.keys:
            if key in seen:
                yield f"key {key} is in {seen[key]} and again in {name}"
            seen[key] = name


def _check_files(directory: Path, manifest: Manifest, sidecars: dict[str, Sidecar]) -> Iterator[str]:
    """Files that the manifest names; the index has exactly the samples of the shards."""
    for name, digest in manifest.files.items():
        path = directory / name
        if not path.exists():
            yield f"{path}: missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path}: altered since it was published"
        elif path == RunDir(directory).index and len(sidecars) == len(manifest.shards):
            listed = {row["key"] for row in read_index(path) if row["status"] == "ok"}
            packed = {key for sidecar in sidecars.values() for key in sidecar.keys}
            if listed != packed:
                first = min(listed ^ packed)
                yield f"{path}: its ok rows and the shards differ in {len(listed ^ packed)} keys, first {first}"


def _class_counts(sidecars: dict[str, Sidecar], manifest: Manifest) -> dict[str, int]:
    counts = Counter(label for sidecar in sidecars.values() for label in sidecar.labels)
    return {name: counts[index] for index, name in enumerate(manifest.classes or [])}
