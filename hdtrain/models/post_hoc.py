"""EMA of any length, made after training from the averages that were written down during it (EDM2)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hdtrain.errors import CheckpointError
from hdtrain.models.ema import POST_HOC_STDS, combine, post_hoc_name


def rebuild_average(snapshots: Sequence[Path], std: float, images_seen: int | None = None) -> dict[str, Tensor]:
    """The power-function average of relative width `std`, by parameter name, fp32.

    Args:
        snapshots: files as training wrote them, in any order.
        std: wanted width, as a share of the training's length.
        images_seen: as it was after so many images, at one of the snapshots; None: at the last.

    Raises:
        CheckpointError: no snapshots, one cannot be read, or none was made after `images_seen` images.
    """
    by_images = {int(path.stem.removeprefix("images-")): path for path in snapshots}
    if not by_images:
        raise CheckpointError("no snapshots of averages: the model was trained with ema.post_hoc=false")
    end = max(by_images) if images_seen is None else images_seen
    if end not in by_images:
        there = ", ".join(str(images) for images in sorted(by_images))
        raise CheckpointError(f"no snapshot after {end} images; there are snapshots after {there}")
    used = [(path, _updates(path)) for images, path in sorted(by_images.items()) if images <= end]
    stored = [(path, updates, width) for path, updates in used for width in POST_HOC_STDS]
    factors = combine([(updates, width) for _, updates, width in stored], used[-1][1], std)
    total: dict[str, Tensor] = {}
    for (path, _, width), factor in zip(stored, factors.tolist(), strict=True):
        for name, value in _read(path, post_hoc_name(width)):
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + factor * value.double()
    return {name: value.float() for name, value in total.items()}


def _updates(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["updates"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no snapshot of averages, or damaged: {error}") from None


def _read(path: Path, average: str) -> list[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{average}/")]  # noqa: SIM118
        return [(name.removeprefix(f"{average}/"), file.get_tensor(name)) for name in names]
