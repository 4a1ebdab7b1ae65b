"""Whose settings the runs followed, where paper and released code disagree, and each departure from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdtrain.reporting.formatting import join
from hdtrain.reporting.runs import Run

NAMES = {"paper": "the paper", "released_code": "the released code"}
NEVER = (
    "Never done here, although the released code does it: the best epoch chosen on the test split, ᾱ looked up for "
    "50 steps whatever their number, and a latent scale from one batch."
)


@dataclass(frozen=True)
class ProtocolRow:
    """Runs of one stage that followed the same protocol with the same departures."""

    stage: str
    runs: list[str]
    protocol: str
    departures: list[str]
    """`key: ours (the protocol's)`."""


def protocol_rows(runs: Mapping[str, Run]) -> list[ProtocolRow]:
    """Every run whose manifest names a protocol, in the order of the graph."""
    rows: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for name, run in runs.items():
        followed = run.manifest.protocol if run.manifest else None
        if followed:
            key = (run.stage, str(followed["name"]), tuple(followed["departures"]))
            rows.setdefault(key, []).append(name)
    return [ProtocolRow(stage, names, protocol, list(lines)) for (stage, protocol, lines), names in rows.items()]


def protocol_sentence(rows: Sequence[ProtocolRow]) -> str:
    """In plain words: how many runs follow whom, with how many departures."""
    parts = []
    for protocol, name in NAMES.items():
        own = [row for row in rows if row.protocol == protocol]
        if not own:
            continue
        count = sum(len(row.runs) for row in own)
        departures = len({(row.stage, line) for row in own for line in row.departures})
        said = f"{departures} departure{'s' * (departures != 1)}" if departures else "no departure"
        parts.append(f"{count} run{'s follow' if count != 1 else ' follows'} {name}, with {said}")
    return f"Of the runs on which paper and released code disagree, {join(parts)}. {NEVER}" if parts else ""
