"""The folder of weights files, each under a name: `$HDTRAIN_WEIGHTS`, or `~/.cache/hdtrain/weights`.

`index.json` says for every name which file it is and the sha256 that it had when it came. Files appear by rename, and
only after their hash was compared with what is known. Nothing here opens a connection.
"""

import contextlib
import difflib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from hdtrain.config.base import Config, InputFile, references
from hdtrain.errors import ConfigError, WeightsError
from hdtrain.formats.atomic import sha256_file, write_json
from hdtrain.formats.weights_registry import KNOWN, TIMM, find_known

VERSION = 1
PREFIX = "weights:"
"""Before a name, in a config, where a path to a weights file may stand."""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)?")


class Entry(Config):
    """One name in the store."""

    file: str
    """Below the store's folder."""
    sha256: str
    size_bytes: int
    source: str
    """URL or path that it came from."""
    added: str


class Index(Config):
    """`index.json`."""

    version: int = VERSION
    weights: dict[str, Entry] = Field(default_factory=dict)


@dataclass(frozen=True)
class WeightsStore:
    """A folder of weights files and its index."""

    folder: Path

    @classmethod
    def default(cls) -> "WeightsStore":
        """`$HDTRAIN_WEIGHTS`, else `~/.cache/hdtrain/weights`; need not be there."""
        named = os.environ.get("HDTRAIN_WEIGHTS", "").strip()
        return cls((Path(named) if named else Path("~/.cache/hdtrain/weights")).expanduser().absolute())

    @property
    def index_file(self) -> Path:
        """Where the index lies."""
        return self.folder / "index.json"

    def entries(self) -> Mapping[str, Entry]:
        """What the index names; nothing where there is no store yet.

        Raises:
            WeightsError: the index cannot be read.
        """
        try:
            index = Index.model_validate(json.loads(self.index_file.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"{self.index_file} cannot be read: {reason}; remove it and `hdtrain weights add` the files again"
            ) from None
        if index.version != VERSION:
            raise WeightsError(f"{self.index_file}: version {index.version}, this hdtrain reads {VERSION}")
        return index.weights

    def path(self, name: str) -> Path:
        """The file of `name`.

        Raises:
            WeightsError: it is not in the store, gone, or of another size than when it came.
        """
        entry = self.entries().get(name)
        if entry is None:
            raise WeightsError(f"weights '{name}' are not in {self.folder}; {how_to_get(name)}")
        path = self.folder / entry.file
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size_bytes:
            found = "is gone" if size is None else f"has {size:,} bytes, {entry.size_bytes:,} when it came"
            raise WeightsError(f"weights '{name}': {path} {found}; {how_to_get(name)}")
        return path

    def publish(self, name: str, temporary: Path, file: str, source: str, sha256: str | None = None) -> Entry:
        """Rename `temporary`, which lies in the store's folder, to `file` and enter it, if its hash is right.

        Args:
            name: its name.
            temporary: the file, or a link to it.
            file: the file name that it gets.
            source: where it came from, for the index.
            sha256: what the user says that it has; None: what the registry knows, if it knows anything.

        Raises:
            WeightsError: another hash than expected; the file stays under its temporary name.
        """
        found = sha256_file(temporary)
        known = find_known(name)
        expected = [text for text in (sha256, known.sha256 if known else None) if text]
        for text in expected:
            if not found.startswith(text.lower()):
                size = temporary.stat().st_size
                more = f" ({known.size_bytes:,} bytes)" if known and known.size_bytes else ""
                raise WeightsError(
                    f"weights '{name}': {source} has sha256 {found} ({size:,} bytes), expected {text}{more}; "
                    "it is cut off or another file, and is not taken into the store"
                )
        entry = Entry(
            file=file,
            sha256=found,
            size_bytes=temporary.stat().st_size,
            source=source,
            added=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._locked():
            others = [other for other, there in self.entries().items() if there.file == file and other != name]
            if others:
                raise WeightsError(f"{self.folder / file} is the file of '{others[0]}' already; rename yours")
            temporary.replace(self.folder / file)
            entries = dict(sorted({**self.entries(), name: entry}.items()))
            write_json(self.index_file, Index(weights=entries).model_dump())
        return entry

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def check_name(name: str) -> None:
    """Raise WeightsError unless `name` can stand in a config and in a file name."""
    if not _NAME.fullmatch(name):
        raise WeightsError(f"'{name}' is no name for weights: letters, digits, . _ + -, and one / at most")


def how_to_get(name: str) -> str:
    """The command that would put `name` into the store."""
    if find_known(name):
        return f"run `hdtrain weights fetch {name}` where there is a network, or `hdtrain weights add {name} FILE`"
    close = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known by name: {', '.join(KNOWN)}, {TIMM}MODEL"
    return f"{hint} If it is yours: `hdtrain weights add {name} FILE`"


def resolve_named_weights(config: Config, source: str) -> dict[str, Path]:
    """For every `weights:NAME` that stands where `config` wants a file: its text, and the file in the store.

    Raises:
        ConfigError: one line for each that is not there.
    """
    found: dict[str, Path] = {}
    problems = []
    for reference in references(config):
        text = str(reference.path)
        if isinstance(reference.marker, InputFile) and text.startswith(PREFIX):
            try:
                found[text] = WeightsStore.default().path(text.removeprefix(PREFIX))
            except WeightsError as error:
                problems.append(f"{reference.dotted}: {error}")
    if problems:
        raise ConfigError(source, problems)
    return found
