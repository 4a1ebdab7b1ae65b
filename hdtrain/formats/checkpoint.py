"""Checkpoint folders: complete or absent, independent of world size and ZeRO stage, no pickled code.

`checkpoints/step-00000120/` holds `NAME.safetensors` files and `meta.json`. It is written under a temporary name and
renamed when complete; `latest` and `best` are renamed into place after it.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdtrain.errors import CheckpointError
from hdtrain.formats.atomic import sha256_file, sync, write_bytes, write_json

CHECKPOINT_VERSION = 2
_NAME = re.compile(r"step-(\d{8})$")


def write_checkpoint(root: Path, step: int, write_files: Callable[[Path], None], meta: dict[str, Any]) -> Path:
    """Write one checkpoint through `write_files(folder)`, publish it by rename, and point `latest` at it.

    Where that fails, as on a full disk, nothing of it stays.
    """
    final = root / f"step-{step:08d}"
    temporary = _temporary(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_files(temporary)
        hashes = {}
        for path in sorted(temporary.iterdir()):
            sync(path)
            hashes[path.name] = sha256_file(path)
        write_json(temporary / "meta.json", {"version": CHECKPOINT_VERSION, "step": step, "files": hashes, **meta})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        _remove(final, root / f".{final.name}-old.tmp")
    temporary.replace(final)
    write_bytes(root / "latest", final.name.encode())
    return final


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _remove(folder: Path, leaving: Path) -> None:
    """Remove a checkpoint under another name: a kill in the middle must not leave half of one that looks complete."""
    shutil.rmtree(leaving, ignore_errors=True)
    folder.rename(leaving)
    shutil.rmtree(leaving)


def complete(root: Path) -> list[Path]:
    """Every complete checkpoint, oldest first. A half-written one has a temporary name and is not seen."""
    found = [path for path in root.glob("step-*") if _NAME.match(path.name) and (path / "meta.json").exists()]
    return sorted(found)


def find_latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return max(complete(root), default=None)


def remove_leftovers(root: Path) -> None:
    """Remove what a run that was killed while it saved has left under temporary names."""
    for path in root.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """The checkpoint's `meta.json`.

    Raises:
        CheckpointError: it cannot be read, or the version is another.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: meta.json cannot be read: {error}") from None
    if meta.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{folder}: version {meta.get('version')}, this hdtrain reads {CHECKPOINT_VERSION}; remove "
            f"{folder.parent} to train from the beginning, or go on with the hdtrain that wrote it"
        )
    return meta


def check_files(folder: Path, meta: dict[str, Any]) -> None:
    """Compare the checkpoint's files with their sha256 in `meta`.

    Raises:
        CheckpointError: a file is missing or altered.
    """
    for name, digest in meta["files"].items():
        path = folder / name
        if not path.exists() or sha256_file(path) != digest:
            raise CheckpointError(
                f"{path}: missing or altered since it was written; remove {folder} to go on from the one before it"
            )


def prune(root: Path, keep: int, keep_best: int = 0, spared: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and the `keep_best` with the lowest `validation` in their meta.

    The one of step `spared` stays too.
    """
    found = complete(root)
    scores = {path: read_meta(path).get("validation") for path in found}
    scored = {path: score for path, score in scores.items() if score is not None and math.isfinite(score)}
    best = sorted(scored, key=lambda path: (scored[path], path))[:keep_best]
    if best:
        write_bytes(root / "best", best[0].name.encode())
    kept = {*found[-keep:], *best, *([] if spared is None else [root / f"step-{spared:08d}"])}
    for path in set(found) - kept:
        _remove(path, _temporary(path))
