"""Where the logs of a run lie: those of its attempts, and what the queue keeps of every rank. No torch."""

from collections.abc import Iterable
from pathlib import Path

from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.submission import Job, SubmissionDir


def attempt_logs(directory: Path) -> list[Path]:
    """`RUN/logs/*.log`, the newest last."""
    return _by_age(RunDir(directory).logs.glob("*.log"))


def rank_logs(place: SubmissionDir, job: Job, rank: int) -> list[Path]:
    """What one rank of a job printed, the newest last: of every element a file, with SLURM one more of its stderr."""
    if all(one.startswith("local:") for one in job.ids):
        return _by_age(place.job(job.name).glob(f"*_{rank}_log.out"))
    folder = place.job(job.array or job.name)
    names = [f"{one}_{rank}_log.{kind}" for one in job.ids for kind in ("out", "err")]
    return _by_age(folder / name for name in names)


def ranks_with_logs(place: SubmissionDir, job: Job) -> int:
    """How many ranks have printed something."""
    number = 0
    while rank_logs(place, job, number):
        number += 1
    return number


def age_key(path: Path) -> float:
    """Unix seconds of its last change; 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _by_age(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if path.is_file()), key=lambda path: (age_key(path), path.name))
