"""First pass: decode every candidate once and decide on it, before anything is planned or written.

So a broken image never leaves a gap in a shard, an even sample is drawn among usable images alone, and a data set that
is refused leaves nothing behind. Verdicts are journalled in parts: a run that was killed goes on where it stopped,
and takes a part's verdicts back only if its files still have the same size and time of change.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json, sha256_bytes, write_json
from hdtrain.progress import track
from sharding.candidate import Candidate
from sharding.images import Alpha, UnusableError, decode
from sharding.tiles import file_state, tissue_share

PART = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one candidate."""

    status: str
    """ok, rejected or background."""
    reason: str | None = None
    ext: str | None = None
    """Extension under which the original bytes are stored; None: re-encode as PNG."""
    width: int = 0
    height: int = 0
    sha256: str = ""
    """Of the file's bytes, or of a tile's pixels."""


def judge(candidate: Candidate, alpha: Alpha) -> Verdict:
    """Decode one candidate."""
    try:
        if candidate.tile:
            pixels, ext = candidate.tile.pixels(), None
            digest = sha256_bytes(pixels.tobytes())
        else:
            data = candidate.file.read_bytes()
            decoded = decode(data, alpha)
            pixels, ext, digest = decoded.pixels, decoded.ext, sha256_bytes(data)
    except UnusableError as error:
        return Verdict("rejected", str(error))
    except OSError as error:
        return Verdict("rejected", f"unreadable: {error.strerror}")
    height, width, _ = pixels.shape
    background = candidate.min_tissue > 0 and tissue_share(pixels) < candidate.min_tissue
    return Verdict("background" if background else "ok", None, ext, width, height, digest)


def survey(candidates: Sequence[Candidate], alpha: Alpha, journal: Path, threads: int) -> list[Verdict]:
    """Judge every candidate, and reject all but the first of those with the same bytes.

    Args:
        candidates: sorted by key.
        alpha: what to do with transparency.
        journal: folder of the parts.
        threads: the result does not depend on it.
    """
    verdicts = list(track(_judge_all(candidates, alpha, journal, threads), len(candidates), "survey"))
    first: dict[str, str] = {}
    for index, (candidate, verdict) in enumerate(zip(candidates, verdicts, strict=True)):
        if verdict.status == "ok" and first.setdefault(verdict.sha256, candidate.key) != candidate.key:
            reason = f"duplicate of {first[verdict.sha256]}"
            verdicts[index] = replace(verdict, status="rejected", reason=reason)
    return verdicts


def _judge_all(candidates: Sequence[Candidate], alpha: Alpha, journal: Path, threads: int) -> Iterator[Verdict]:
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(candidates), PART):
            part = candidates[start : start + PART]
            path, identity = journal / f"survey-{start // PART:06d}.json", _identity(part, alpha)
            kept = _read_part(path, identity)
            if kept is not None:
                yield from kept
                continue
            verdicts = []
            for verdict in pool.map(judge, part, [alpha] * len(part)):
                verdicts.append(verdict)
                yield verdict
            write_json(path, {"identity": identity, "verdicts": [asdict(verdict) for verdict in verdicts]})


def _identity(part: Sequence[Candidate], alpha: Alpha) -> str:
    """Hash of which candidates these are, how they are judged, and the state of their files."""
    states: dict[Path, tuple[int, int] | None] = {}
    for candidate in part:
        if candidate.file not in states:
            states[candidate.file] = file_state(candidate.file)
    rows = [
        (c.key, c.identity, states[c.file], c.min_tissue, (c.tile.left, c.tile.top, c.tile.size_px) if c.tile else None)
        for c in part
    ]
    return sha256_bytes(canonical_json([alpha, rows]))


def _read_part(path: Path, identity: str) -> list[Verdict] | None:
    try:
        part = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return [Verdict(**verdict) for verdict in part["verdicts"]] if part.get("identity") == identity else None


def reason_kind(reason: str | None) -> str:
    """`reason` without its particulars, to count by: 'duplicate', 'unsupported mode', 'truncated or damaged' …."""
    return (reason or "").split(":")[0].split(" of ")[0]


def check_failures(candidates: Sequence[Candidate], verdicts: Sequence[Verdict], max_failed_share: float) -> None:
    """Duplicates and background do not count as failures.

    Raises:
        DataError: too many images are unusable, or a source has no usable image or no tissue at all.
    """
    pairs = list(zip(candidates, verdicts, strict=True))
    failed = [(c, v) for c, v in pairs if v.status == "rejected" and reason_kind(v.reason) != "duplicate"]
    total = sum(verdict.status != "background" for verdict in verdicts)
    if len(failed) > max_failed_share * total:
        named = "; ".join(f"{candidate.file} ({verdict.reason})" for candidate, verdict in failed[:3])
        raise DataError(
            f"{len(failed)} of {total} images cannot be used ({len(failed) / total:.1%}), "
            f"more than max_failed_share allows ({max_failed_share:.1%}): {named}; mend them or raise the limit"
        )
    statuses: dict[str, set[str]] = {}
    for candidate, verdict in pairs:
        duplicate = verdict.status == "rejected" and reason_kind(verdict.reason) == "duplicate"
        statuses.setdefault(candidate.source, set()).add("ok" if duplicate else verdict.status)
    for candidate in candidates:
        if "ok" not in statuses[candidate.source]:
            what = "no tissue tile" if "background" in statuses[candidate.source] else "no usable image"
            limit = f" (min_tissue {candidate.min_tissue})" if candidate.min_tissue else ""
            raise DataError(f"source '{candidate.source}': {what} at all{limit}, first: {candidate.file}")
