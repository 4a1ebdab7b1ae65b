"""Reading a JSON file that carries the version of its schema."""

import json
from pathlib import Path
from typing import TypeVar

from hdtrain.config.base import Config
from hdtrain.errors import ManifestError

ConfigT = TypeVar("ConfigT", bound=Config)


def read_versioned(path: Path, model: type[ConfigT], version: int, name: str, stage: str) -> ConfigT:
    """The file as a `model`.

    Args:
        path: the file.
        model: its schema.
        version: what its `version` must be.
        name: what it is, for messages.
        stage: which stage makes it.

    Raises:
        ManifestError: missing, no JSON, or of another version.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: {name} cannot be read: {error}") from None
    if tree.get("version") != version:
        raise ManifestError(
            f"{path}: {name} version {tree.get('version')}, this hdtrain reads {version}; run `hdtrain {stage}` again"
        )
    return model.model_validate(tree)
