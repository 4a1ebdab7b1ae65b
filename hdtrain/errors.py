"""Errors of the user's making. The CLI prints their message and leaves with exit code 2; anything else is a bug."""

import errno
from collections.abc import Sequence


class HdtrainError(Exception):
    """Base of every error that a user can mend: wrong input, missing file, mismatching artefacts."""


class ConfigError(HdtrainError):
    """One or several mistakes in a configuration, all reported at once."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.source, self.problems = source, list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n  ".join([f"{source}: {count}", *self.problems]))


class ManifestError(HdtrainError):
    """A parent artefact is missing, unpublished, of another version or kind, or does not fit another parent."""


class ShardError(HdtrainError):
    """A shard or its sidecar is missing, truncated or altered."""


class DataError(HdtrainError):
    """Raw input that cannot be used: missing folder, empty class, too many unreadable images."""


class CheckpointError(HdtrainError):
    """A checkpoint is incomplete, altered or belongs to another model."""


class WeightsError(HdtrainError):
    """A weights file is missing or not what its name says."""


class TrainingError(HdtrainError):
    """Training cannot go on: NaN or Inf in the loss or the gradients."""


def explain_disk(error: OSError, place: object) -> str | None:
    """One line for a disk that is full or not to be written to; None for an error of another kind."""
    mends = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some room")
    mends |= dict.fromkeys((errno.EROFS, errno.EACCES), "see to it that you may write there")
    if error.errno not in mends:
        return None
    return f"{error.strerror}: {error.filename or place}; {mends[error.errno]}, then run the same command"
