"""A JSON file that carries the version of its schema."""

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError

from hdtrain.config.base import Config
from hdtrain.errors import ManifestError
from hdtrain.formats.atomic import write_json


class VersionedFile(Config):
    """The whole of such a file. The default of `version` is the one that is written and read."""

    STAGE: ClassVar[str]
    """Makes the file."""
    WHAT: ClassVar[str] = "results"
    """The file in messages."""

    version: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file.

        Raises:
            ManifestError: missing, no JSON, of another version, or damaged.
        """
        try:
            tree = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path}: {cls.WHAT} cannot be read: {error}") from None
        found, known = tree.get("version") if isinstance(tree, dict) else None, cls.model_fields["version"].default
        if found != known:
            raise ManifestError(
                f"{path}: {cls.WHAT} version {found}, this hdtrain reads {known}; run `hdtrain {cls.STAGE}` again"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ManifestError(
                f"{path}: {cls.WHAT} damaged: {where}: {first['msg']}; run `hdtrain {cls.STAGE}` again"
            ) from None

    def write(self, path: Path) -> None:
        """Atomically."""
        write_json(path, self.model_dump(mode="json"))
