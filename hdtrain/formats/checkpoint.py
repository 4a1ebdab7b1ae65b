"""Checkpoint folders: complete or absent, independent of world size and ZeRO stage, no pickled code.

`checkpoints/step-00000120/` holds `NAME.safetensors` files and `meta.json`. It is written under a temporary name and
renamed when complete; `latest` is renamed into place after it.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdtrain.errors import CheckpointError
from hdtrain.formats.atomic import sha256_file, write_bytes, write_json

CHECKPOINT_VERSION = 1
_NAME = re.compile(r"step-(\d{8})$")


def write_checkpoint(root: Path, step: int, write_files: Callable[[Path], None], meta: dict[str, Any]) -> Path:
    """Write one checkpoint through `write_files(folder)`, publish it by rename, and point `latest` at it."""
    final = root / f"step-{step:08d}"
    temporary = root / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_files(temporary)
    hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
    write_json(temporary / "meta.json", {"version": CHECKPOINT_VERSION, "step": step, "files": hashes, **meta})
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    write_bytes(root / "latest", final.name.encode())
    return final


def find_latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None. A half-written one has a temporary name and is not seen."""
    found = [path for path in root.glob("step-*") if _NAME.match(path.name) and (path / "meta.json").exists()]
    return max(found, default=None)


def read_meta(folder: Path) -> dict[str, Any]:
    """The checkpoint's `meta.json`, after its files' hashes were checked.

    Raises:
        CheckpointError: a file is missing or altered, or the version is another.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: meta.json cannot be read: {error}") from None
    if meta.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(f"{folder}: version {meta.get('version')}, this hdtrain reads {CHECKPOINT_VERSION}")
    for name, digest in meta["files"].items():
        path = folder / name
        if not path.exists() or sha256_file(path) != digest:
            raise CheckpointError(
                f"{path}: missing or altered since it was written; remove {folder} to go on from the one before it"
            )
    return meta


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    complete = sorted(path for path in root.glob("step-*") if _NAME.match(path.name))
    for path in complete[:-keep]:
        shutil.rmtree(path)
