"""Reading a source to its end, and making archives."""

import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from hdtrain.config.shards import SourceConfig
from sharding.images import UnusableError
from sharding.inputs import Input
from sharding.readers import open_source
from sharding.readers.base import Reader


def opened(path: Path, **config: Any) -> Reader:
    return open_source(SourceConfig.model_validate({"path": path, **config}))


def listed(path: Path, unit_inputs: int | None = None, **config: Any) -> list[Input]:
    """All inputs of a source; with another size of units if asked for, each unit read by a reader of its own."""
    reader = opened(path, **config)
    if unit_inputs is None:
        return [item for unit in reader.units() for item in reader.read(unit)]
    assert hasattr(reader, "unit_inputs")
    reader.unit_inputs = unit_inputs
    units = list(reader.units())
    assert all(unit.num_inputs <= unit_inputs for unit in units)
    return [item for unit in units for item in opened(path, **config).read(unit)]


def described(inputs: list[Input]) -> list[tuple[Any, ...]]:
    """Everything that reaches the index and the shards."""
    names = ("path", "stem", "label", "slide", "patient", "x", "y", "mpp", "tail")
    return [(*(getattr(item, name) for name in names), outcome(item)) for item in inputs]


def outcome(item: Input) -> Any:
    """The bytes of an image file, the pixels as bytes, or the reason why there are none."""
    try:
        content = item.content.load()
    except UnusableError as error:
        return f"refused: {error}"
    return content if isinstance(content, bytes) else content.tobytes()


def make_zip(folder: Path, archive: Path, top: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as made:
        for file in sorted(folder.rglob("*"), reverse=True):
            made.write(file, os.path.join(top, file.relative_to(folder)))  # noqa: PTH118
    return archive


def make_tar(folder: Path, archive: Path, top: str = ".", layout: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(archive, "w", format=layout) as made:
        for file in sorted(folder.rglob("*"), reverse=True):
            made.add(file, f"{top}/{file.relative_to(folder)}", recursive=False)
    return archive
