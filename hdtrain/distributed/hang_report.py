"""The message about a hung rank: who, where, since when, with its stacks, and where the others wait."""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.heartbeats import GONE, Heartbeat, ThreadStack, dump_path, process_state, read_bytes
from hdtrain.text import first_few

SHOWN_RANKS, SHOWN_THREADS = 4, 6


def hang_report(
    what: str,
    heartbeats: Mapping[int, Heartbeat | None],
    silent: Mapping[int, float],
    folder: Path,
    checkpoints: Path | None,
) -> str:
    """What happened, in paragraphs that begin with the ranks to blame.

    Args:
        what: the first sentence.
        heartbeats: of every rank; None where it has no file.
        silent: ranks that give no sign of life, with the seconds for which that was watched.
        folder: of the heartbeats.
        checkpoints: folder of the checkpoints.
    """
    guilty, why = _to_blame(heartbeats, silent)
    lines = [f"{what}; {ranks_text(guilty)} {why}"]
    for rank in guilty[:SHOWN_RANKS]:
        lines += _one(rank, heartbeats[rank], rank in silent, folder)
    rest = [heartbeats[rank] for rank in sorted(heartbeats) if rank not in guilty]
    lines += _waiting([heartbeat for heartbeat in rest if heartbeat])
    return "\n  ".join([*lines, _what_now(checkpoints)])


def _to_blame(heartbeats: Mapping[int, Heartbeat | None], silent: Mapping[int, float]) -> tuple[list[int], str]:
    """Ranks without a sign of life, else those that have come least far."""
    missing = sorted(rank for rank, heartbeat in heartbeats.items() if heartbeat is None)
    there = {rank: heartbeat for rank, heartbeat in heartbeats.items() if heartbeat and not heartbeat.left}
    mute = sorted([*missing, *(rank for rank in there if rank in silent)])
    if mute:
        return mute, f"{'gives' if len(mute) == 1 else 'give'} no sign of life"
    least = min(heartbeat.place for heartbeat in there.values())
    last = sorted(rank for rank, heartbeat in there.items() if heartbeat.place == least)
    if len(last) == len(heartbeats) > 1:
        return last, "stand at the same place: the network between them, or something that all of them wait for"
    return last, "lags behind" if len(last) == 1 and len(heartbeats) > 1 else "hangs" if len(
        last
    ) == 1 else "lag behind"


def _one(rank: int, heartbeat: Heartbeat | None, silent: bool, folder: Path) -> list[str]:
    """A rank to blame, with its stacks."""
    if heartbeat is None:
        return [f"rank {rank}: has written no heartbeat in this attempt"]
    state = process_state(heartbeat.pid) if heartbeat.host == socket.gethostname() else ""
    process = f"rank {rank} (process {heartbeat.pid} on {heartbeat.host}{f', {state}' if state else ''})"
    if not silent:
        place = f"{_place(heartbeat)}, since {clock(heartbeat.beat_time)}"
        return [f"{process}: {place}; its threads:", *_stacks(heartbeat.threads)]
    last = f"{process}: last heard of at {clock(heartbeat.written)}, then at {_place(heartbeat)}"
    dump = _dumped(dump_path(folder, rank)) if state != GONE else []
    if dump:
        return [
            f"{last}; something in it holds the Python interpreter; its main thread, as it wrote it down since:",
            *dump,
        ]
    return [f"{last}{'; its threads stood then:' if heartbeat.threads else ''}", *_stacks(heartbeat.threads)]


def _dumped(path: Path) -> list[str]:
    """What `faulthandler` wrote, without its heading."""
    return [f"  {line}" for line in read_bytes(path).decode(errors="replace").splitlines()[1:] if line]


def _stacks(threads: Sequence[ThreadStack]) -> list[str]:
    """The main thread, then the others; those at the same place together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for thread in threads:
        together.setdefault(tuple(thread.frames), []).append(thread.name)
    lines = []
    for frames, names in list(together.items())[:SHOWN_THREADS]:
        lines.append(f"  {first_few(names, 3)}:")
        lines += [f"    {frame}" for frame in frames]
    return lines


def _waiting(heartbeats: Sequence[Heartbeat]) -> list[str]:
    """Where the other ranks are, those at the same place in one line."""
    together: dict[str, list[int]] = {}
    for heartbeat in heartbeats:
        frames = heartbeat.threads[0].frames if heartbeat.threads else []
        where = f", in {frames[-1]}" if frames else ""
        place = "left the loop" if heartbeat.left else f"waits at {_place(heartbeat)}{where}"
        together.setdefault(place, []).append(heartbeat.rank)
    return [
        f"{ranks_text(ranks)} {place if len(ranks) == 1 else place.replace('waits', 'wait')}"
        for place, ranks in list(together.items())[:SHOWN_RANKS]
    ]


def _what_now(checkpoints: Path | None) -> str:
    latest = find_latest(checkpoints) if checkpoints else None
    if latest is None:
        return "there is no checkpoint yet; the same command begins anew"
    return f"the checkpoint {latest.name} stays; the same command goes on from step {int(latest.name[5:])}"


def _place(heartbeat: Heartbeat) -> str:
    return f"step {heartbeat.step}, {heartbeat.phase}"


def clock(unix_sec: float) -> str:
    """`14:02:31`, local time."""
    return time.strftime("%H:%M:%S", time.localtime(unix_sec))


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0, 2-63`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][-1] == rank - 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'' if len(ranks) == 1 else 's'} {text}"
