"""Which sample goes where: duplicates, splits, drawing, shuffling, cutting. Complete before a shard is begun.

Everything here is a few numbers a sample (about 120 bytes at the peak); names and images stay on disk.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json, write_json
from hdtrain.formats.npy import write_npy
from sharding.duplicates import first_of_equal, near_pairs
from sharding.inputs import hashed_key
from sharding.readers.base import Reader
from sharding.readers.slide import NOT_A_SLIDE, SlideReader
from sharding.sampling import draw, draw_even
from sharding.sources import class_names
from sharding.split import NONE, assign_splits
from sharding.table import OK, REJECTED, STORED, UNUSED, Rows

NOT_DUPLICATE, SAME_BYTES, SAME_PIXELS, TURNED, NEAR = range(5)
DUPLICATE_KINDS = (
    "",
    "duplicate of",
    "duplicate (same pixels) of",
    "duplicate (turned or mirrored) of",
    "near duplicate of",
)


@dataclass
class Plan:
    """The fate of every row. Arrays are by row of the table."""

    classes: list[str] | None
    splits: list[str]
    status: NDArray[np.int8]
    duplicate_of: NDArray[np.int64]
    duplicate_kind: NDArray[np.int8]
    split: NDArray[np.int8]
    shard: NDArray[np.int32]
    orders: list[NDArray[np.int64]] = field(default_factory=list)
    """For each split its rows in packing order."""
    failed: list[dict[int, dict[str, int]]] = field(default_factory=list)
    """For each split, by shard, what was rejected on its way there, by reason."""
    warnings: list[str] = field(default_factory=list)
    """What the user should look at, though it stops nothing."""
    renamed: dict[int, str] = field(default_factory=dict)
    """Keys of rows whose names differ only in what a key cannot hold."""

    def save(self, folder: Path, writer: str = "") -> None:
        """Publish what the writers need; `writer` as in `atomic_file`."""
        for index, order in enumerate(self.orders):
            write_npy(folder / f"order-{index}.npy", order, writer)
        tree = {"classes": self.classes, "splits": self.splits, "failed": self.failed, "renamed": self.renamed}
        write_json(folder / "plan.json", tree, writer)


def make_plan(rows: Rows, readers: Sequence[Reader], config: ShardConfig) -> Plan:
    """Decide everything.

    Raises:
        DataError: too many or too few usable images, an empty class, a patient in two splits, an input read twice.
    """
    count = len(rows)
    label_codes, label_names = rows.codes("label")
    classes = class_names(label_names, list(readers), config.classes)
    lookup = np.array([*((classes or []).index(name) for name in label_names), -1], np.int32)
    labels = lookup[label_codes]
    plan = Plan(
        classes=classes,
        splits=config.split_names,
        status=rows.column("status").astype(np.int8),
        duplicate_of=np.full(count, NONE, np.int64),
        duplicate_kind=np.zeros(count, np.int8),
        split=np.full(count, NONE, np.int8),
        shard=np.full(count, NONE, np.int32),
    )
    sources = rows.column("source")
    check_usable(rows, plan.status, sources, readers, config)
    for index, reader in enumerate(readers):
        plan.warnings += _unmatched_names(rows, sources == index, reader)
        plan.warnings += _lost_slides(rows, index, reader, config.max_failed_share)
    _find_duplicates(rows, plan, config)
    _rename(rows, plan, readers)
    _check_classes(plan, labels)
    usable = np.flatnonzero(plan.status == OK)
    groups = {kind: _take_codes(rows.codes(kind), usable) for kind in ("patient", "slide")}
    plan.split[usable] = assign_splits(config, sources[usable], labels[usable], groups)
    _check_kept_duplicates(rows, plan)
    _choose(plan, labels, config)
    _cut(rows, plan, config)
    return plan


def _take_codes(
    codes: tuple[NDArray[np.int32], list[str]], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], list[str]]:
    return codes[0][rows], codes[1]


def check_usable(
    rows: Rows, status: NDArray[np.int8], sources: NDArray[np.int32], readers: Sequence[Reader], config: ShardConfig
) -> None:
    """Raise DataError if too many images are unusable, a source has none, or not as many as it must have."""
    failed = np.flatnonzero(status == REJECTED)
    judged = int(np.isin(status, (OK, REJECTED)).sum())
    if len(failed) > config.max_failed_share * judged:
        named = rows.take(failed[:3], ("source", "path", "reason"))
        first = "; ".join(f"{_place(readers, row)} ({row['reason']})" for row in named)
        raise DataError(
            f"{len(failed)} of {judged} images cannot be used ({len(failed) / judged:.1%}), "
            f"more than max_failed_share allows ({config.max_failed_share:.1%}): {first}; mend them or raise the limit"
        )
    problems = []
    for index, reader in enumerate(readers):
        here = status[sources == index]
        num_ok, expected = int((here == OK).sum()), reader.source.config.expect
        if not num_ok:
            what = "no usable image" if (here == REJECTED).any() or not len(here) else "no tissue tile"
            least = reader.source.config.min_tissue
            limit = f" (min_tissue {least:g})" if least and what == "no tissue tile" else ""
            problems.append(f"source '{reader.source.name}': {what} at all{limit}: {reader.source.path}")
        elif expected is not None and num_ok != expected:
            short = f"{expected - num_ok:,} short" if num_ok < expected else f"{num_ok - expected:,} too many"
            unusable = f", {int((here == REJECTED).sum()):,} more cannot be used" if (here == REJECTED).any() else ""
            problems.append(
                f"source '{reader.source.name}': {num_ok:,} images{unusable}, expected {expected:,}: {short}; "
                f"{'complete' if num_ok < expected else 'look into'} {reader.source.path}, or take 'expect' out"
            )
    if problems:
        raise DataError("; ".join(problems))


def _unmatched_names(rows: Rows, here: NDArray[np.bool_], reader: Reader) -> Iterator[str]:
    """A pattern that finds a field in some names and not in others."""
    for name in {"slide", "patient"} & set(reader.source.pattern.groupindex if reader.source.pattern else ()):
        without = np.flatnonzero(here & (rows.codes(name)[0] == NONE))
        if len(without):
            first = rows.take(without[:1], ("path",))[0]["path"]
            yield (
                f"source '{reader.source.name}': 'pattern' finds no {name} in {len(without):,} of {int(here.sum()):,} "
                f"names, such as {first}; they count as of no {name}"
            )


def _lost_slides(rows: Rows, source: int, reader: Reader, max_failed_share: float) -> Iterator[str]:
    """Whole slides that cannot be read are thousands of tiles each: named, and limited as a share of the slides.

    Raises:
        DataError: more of them than `max_failed_share`.
    """
    if not isinstance(reader, SlideReader):
        return
    lost: list[str] = []
    for _, batch in rows.batches():
        whole = pc.and_(pc.equal(batch.column("source"), source), pc.equal(batch.column("status"), REJECTED))
        for row in batch.filter(pc.and_(whole, pc.is_null(batch.column("x")))).to_pylist():
            if not (row["reason"] or "").startswith(f"{NOT_A_SLIDE}:"):
                lost.append(f"{row['path']} ({row['reason']})")
    if not lost:
        return
    total = sum(1 for _ in reader.units())
    said = f"source '{reader.source.name}': {len(lost)} of {total} slides cannot be used: {'; '.join(lost[:3])}"
    if len(lost) > max_failed_share * total:
        raise DataError(
            f"{said}; that is more than max_failed_share allows ({max_failed_share:.1%}); mend them or raise the limit"
        )
    yield said


def _place(readers: Sequence[Reader], row: dict[str, Any]) -> str:
    root, path = readers[row["source"]].source.path, row["path"]
    if path.startswith(f"{root.name}[") and root.is_file():
        return str(root.with_name(path))
    return str(root) if root.name == path else str(root / path)


def _find_duplicates(rows: Rows, plan: Plan, config: ShardConfig) -> None:
    usable = np.flatnonzero(plan.status == OK)
    first = usable[first_of_equal(rows.column("pixels")[usable])]
    again = first != usable
    copies, originals = usable[again], first[again]
    content, symmetry = rows.column("content"), rows.column("symmetry")
    kinds = np.where(symmetry[copies] == symmetry[originals], SAME_PIXELS, TURNED)
    kinds[content[copies] == content[originals]] = SAME_BYTES
    plan.duplicate_of[copies], plan.duplicate_kind[copies] = originals, kinds
    if config.near_duplicates:
        left = usable[~again]
        dropped: set[int] = set()
        pairs = near_pairs(rows.column("look")[left], config.near_duplicates.max_distance)
        for earlier, later, _ in sorted(set(pairs), key=lambda pair: (pair[1], pair[2], pair[0])):
            if later not in dropped and earlier not in dropped:  # of a chain of look-alikes the first stays, alone
                dropped.add(later)
                plan.duplicate_of[left[later]], plan.duplicate_kind[left[later]] = left[earlier], NEAR
    if config.duplicates == "drop":
        plan.status[plan.duplicate_of != NONE] = REJECTED


def _check_kept_duplicates(rows: Rows, plan: Plan) -> None:
    kept = np.flatnonzero((plan.duplicate_of != NONE) & (plan.status == OK))
    leaking = kept[plan.split[kept] != plan.split[plan.duplicate_of[kept]]]
    if len(leaking):
        one, other = (row["key"] for row in rows.take(np.array([leaking[0], plan.duplicate_of[leaking[0]]]), ("key",)))
        raise DataError(
            f"leak between splits: {len(leaking)} duplicates lie in another split than their original, first {one} "
            f"('{plan.splits[plan.split[leaking[0]]]}') of {other}; set duplicates: drop"
        )


def _rename(rows: Rows, plan: Plan, readers: Sequence[Reader]) -> None:
    """Give a hash to every one of several inputs whose names differ only in what a key cannot hold."""
    hashes = rows.column("key_hash")
    values, counts = np.unique(hashes, return_counts=True)
    clashing = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    taken = rows.take(clashing, ("key", "source", "path", "x", "y"))
    keys = Counter(row["key"] for row in taken)
    for number, row in zip(clashing.tolist(), taken, strict=True):
        if keys[row["key"]] > 1:
            name = f"{readers[row['source']].source.name}/{row['path']} {row['x']} {row['y']}"
            plan.renamed[number] = hashed_key(row["key"], name)
    twice = [key for key, count in Counter(plan.renamed.values()).items() if count > 1]
    if twice:
        row = next(
            row for number, row in zip(clashing.tolist(), taken, strict=True) if plan.renamed[number] == twice[0]
        )
        raise DataError(f"{_place(readers, row)}: read twice, as key '{row['key']}'; expected every image once")


def _check_classes(plan: Plan, labels: NDArray[np.int32]) -> None:
    counts = np.bincount(labels[plan.status == OK] + 1, minlength=len(plan.classes or []) + 1)[1:]
    empty = [name for name, count in zip(plan.classes or [], counts.tolist(), strict=True) if not count]
    if empty:
        raise DataError(f"empty class {', '.join(map(repr, empty))}: no usable image in it")


def _choose(plan: Plan, labels: NDArray[np.int32], config: ShardConfig) -> None:
    """Mark what `sample` and `max_samples` do not draw as unused."""
    for index, name in enumerate(plan.splits):
        members = np.flatnonzero((plan.status == OK) & (plan.split == index))
        if not len(members):
            raise DataError(f"split '{name}' is empty: too few patients, slides or samples for its share")
        drawn = members
        if config.sample and name in (config.sample.splits or plan.splits):
            drawn = members[draw_even(labels[members], plan.classes, config.sample)]
        plan.status[np.setdiff1d(members, drawn, assume_unique=True)] = UNUSED
    if config.max_samples:
        usable = np.flatnonzero(plan.status == OK)
        drawn = draw(usable, config.max_samples, (config.seed, 1))
        plan.status[np.setdiff1d(usable, drawn, assume_unique=True)] = UNUSED


def _cut(rows: Rows, plan: Plan, config: ShardConfig) -> None:
    """Shuffle over the whole input and cut into shards; a rejected input is counted where it would have gone."""
    reasons, names = rows.codes("reason")
    kinds = [reason_kind(name) for name in names]
    homeless = (plan.status == REJECTED) & (plan.split == NONE)
    for index in range(len(plan.splits)):
        at_home = (plan.split == index) & np.isin(plan.status, (OK, REJECTED))
        taken = np.flatnonzero(at_home | homeless if index == 0 else at_home)
        if config.shuffle:
            seed = [config.seed, 0, index] if index else [config.seed, 0]
            taken = taken[np.random.Generator(np.random.PCG64(seed)).permutation(len(taken))]
        is_ok = plan.status[taken] == OK
        shards = np.maximum(np.cumsum(is_ok) - 1, 0) // config.samples_per_shard
        plan.orders.append(taken[is_ok])
        plan.shard[taken[is_ok]] = shards[is_ok]
        failed: dict[int, Counter[str]] = {}
        for row, shard in zip(taken[~is_ok].tolist(), shards[~is_ok].tolist(), strict=True):
            kind = _duplicate_name(plan.duplicate_kind[row]) or kinds[reasons[row]]
            failed.setdefault(shard, Counter())[kind] += 1
        plan.failed.append({shard: dict(sorted(counts.items())) for shard, counts in sorted(failed.items())})


def _duplicate_name(kind: int) -> str:
    return {NOT_DUPLICATE: "", NEAR: "near duplicate"}.get(int(kind), "duplicate")


def reason_kind(reason: str | None) -> str:
    """`reason` without its particulars, to count by: 'unsupported mode', 'truncated or damaged' …."""
    return (reason or "").split(":")[0]


def plan_identity(rows: Rows, plan: Plan, config: ShardConfig) -> str:
    """Hash of everything that decides the shards' bytes, the content of the inputs included."""
    settings = [config.alpha, config.resize_px, config.format, config.jpeg_quality, config.samples_per_shard]
    names = [source.name for source in config.sources]
    digest = hashlib.sha256(
        canonical_json([settings, names, plan.classes, plan.splits, [sorted(f.items()) for f in plan.failed]])
    )
    for _, batch in rows.batches():
        digest.update(batch.select(list(STORED)).serialize())
    for order in plan.orders:
        digest.update(order.tobytes())
    digest.update(canonical_json(sorted(plan.renamed.items())))
    return digest.hexdigest()
