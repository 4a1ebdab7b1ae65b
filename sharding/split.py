"""Which split a sample belongs to: by its source, or by drawing whole patients or slides; neither is ever cut."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hdtrain.config.shards import ShardConfig, Splits
from hdtrain.errors import DataError

NONE = -1


def assign_splits(
    config: ShardConfig,
    sources: NDArray[np.int32],
    labels: NDArray[np.int32],
    groups: dict[str, tuple[NDArray[np.int32], list[str]]],
) -> NDArray[np.int8]:
    """The split of every usable sample, as an index into `config.split_names`.

    Args:
        config: `splits`, and the sources' own `split`.
        sources: of every sample (n), its index in `config.sources`.
        labels: its class, −1 for none: the classes are spread over the splits as evenly as whole groups allow.
        groups: for `patient` and `slide`, every sample's code (−1 unknown) and what the codes are called.

    Raises:
        DataError: a patient or slide that is in two splits, by name; samples of no known group.
    """
    names = config.split_names
    fixed = np.array([names.index(s.split) if s.split else NONE for s in config.sources], np.int8)
    splits: NDArray[np.int8] = fixed[sources] if any(fixed >= 0) else np.zeros(len(sources), np.int8)
    if config.splits:
        free = np.flatnonzero(fixed[sources] == NONE)
        splits[free] = _draw(config.splits, names, labels[free], _groups(config.splits, groups, free))
    for kind in ("patient", "slide"):
        check_disjoint(kind, *groups[kind], splits, names)
    return splits


def _groups(
    splits: Splits, groups: dict[str, tuple[NDArray[np.int32], list[str]]], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    if splits.by == "sample":
        return np.arange(len(rows))
    codes = groups[splits.by][0][rows]
    unknown = int((codes == NONE).sum())
    if unknown:
        raise DataError(
            f"splits.by '{splits.by}': {unknown} of {len(rows)} images have no known {splits.by}; give their source a "
            f"'pattern' with a group '{splits.by}' or a column, or set splits.by to what is known"
        )
    return np.unique(codes, return_inverse=True)[1]


def _draw(
    splits: Splits, names: Sequence[str], labels: NDArray[np.int32], groups: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Largest groups first (ties by seed), each to the split that then lacks its classes most."""
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    order = np.random.Generator(np.random.PCG64(splits.seed)).permutation(num_groups)
    shares = np.array([splits.shares.get(name, 0.0) for name in names])
    split_of = np.full(num_groups, NONE, np.int8)
    if splits.by == "sample":
        return _draw_samples(shares, labels, order)
    num_classes = int(labels.max(initial=-1)) + 2
    counts = np.zeros((num_groups, num_classes), np.int64)
    np.add.at(counts, (groups, labels + 1), 1)
    wanted = shares[:, None] * counts.sum(0)
    have = np.zeros_like(wanted)
    for group in sorted(order.tolist(), key=lambda g: -int(counts[g].sum())):
        lack = ((wanted - have) * counts[group]).sum(1) / np.maximum(shares, 1e-12)
        lack[shares == 0] = -np.inf
        best = int(np.argmax(lack))
        split_of[group] = best
        have[best] += counts[group]
    return split_of[groups]


def _draw_samples(shares: NDArray[np.float64], labels: NDArray[np.int32], order: NDArray[np.int64]) -> NDArray[np.int8]:
    """Single samples: within each class, a seeded order cut by the shares."""
    split_of = np.empty(len(labels), np.int8)
    for label in np.unique(labels).tolist():
        rows = order[labels[order] == label]
        edges = np.floor(np.cumsum(shares) / shares.sum() * len(rows) + 0.5).astype(np.int64)
        split_of[rows] = np.searchsorted(edges, np.arange(len(rows)), side="right")
    return split_of


def check_disjoint(
    kind: str, codes: NDArray[np.int32], values: Sequence[str], splits: NDArray[np.int8], names: Sequence[str]
) -> None:
    """Raise DataError if a patient (or slide) has samples in two splits, and name it."""
    known = (codes != NONE) & (splits != NONE)
    pairs = np.unique(np.stack([codes[known], splits[known].astype(np.int32)]), axis=1)
    leaking = pairs[0][:-1][pairs[0][1:] == pairs[0][:-1]]
    if len(leaking):
        first = int(leaking[0])
        where = " and ".join(f"'{names[split]}'" for split in pairs[1][pairs[0] == first].tolist())
        more = f" (and {len(set(leaking.tolist())) - 1} more)" if len(set(leaking.tolist())) > 1 else ""
        raise DataError(
            f"leak between splits: {kind} '{values[first]}'{more} is in {where}; "
            f"put all of a {kind}'s images into one split"
        )
