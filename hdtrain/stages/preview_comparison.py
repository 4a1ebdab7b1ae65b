"""`python -m hdtrain.stages.preview_comparison DIR < CONFIG`: what `evaluate-images` finds and would do.

No image is decoded. The rest as of `hdtrain.stages.preview`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from hdtrain.config.evaluation import SIDES, STATISTICS, EvaluateImagesConfig
from hdtrain.evaluation.compare import needs
from hdtrain.evaluation.label_agreement import AGREEMENT_REAL, check_judge, without_yardstick
from hdtrain.evaluation.set_statistics import made_with
from hdtrain.evaluation.sides import Side, check_sides, listed_classes
from hdtrain.features.encoders import Encoder, build_encoder
from hdtrain.formats.fingerprint import read_parents
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.sweep import AGREEMENT
from hdtrain.stages.preview import print_preview
from sharding.compared import kind_of, listed_images, shard_config

STAGE = "evaluate-images"
MISTAKE = 2


def preview(config: EvaluateImagesConfig, _: Path) -> Iterator[str]:
    """The lines.

    Raises:
        HdtrainError: what the stage itself would refuse before it packs.
    """
    parents = read_parents(config, STAGE)
    encoder = build_encoder(config.encoder)
    made = made_with(encoder, config.resolution)
    found = [_side(name, config, parents) for name in SIDES]
    sides = [side.read(encoder, made) for side, _ in found]
    judge = parents.get("judge")
    warnings = check_sides(config, *sides) + check_judge(judge, *sides)
    yield f"encoder: {encoder.name}, weights {encoder.weights_sha256[:12]}, {encoder.dim} features; {encoder.resize}"
    for side, count in found:
        yield _about(side, count)
    yield from _figures(encoder, {side.name: count for side, count in found}, config)
    if judge:
        yield from _judged(judge, sides[0])
    yield from (f"warning: {warning}" for warning in warnings)


def _side(
    name: str, config: EvaluateImagesConfig, parents: dict[str, tuple[Path, Manifest]]
) -> tuple[Side, int | None]:
    """A side, and how many images it has (raw ones: as listed, undecoded)."""
    path = getattr(config, name)
    if name in parents:
        dataset = parents[name]
        if dataset[1].kind == STATISTICS:
            return Side(name, path, "statistics", dataset, dataset[1].classes), int(dataset[1].info["num_images"])
        return Side(name, path, "images", dataset, dataset[1].classes), dataset[1].num_samples
    if kind_of(path) == "moments":
        return Side(name, path, "moments"), None
    shards = shard_config(name, path, getattr(config, f"{name}_layout"), config.max_failed_share)
    count, classes = listed_images(name, shards)
    return Side(name, path, "raw", classes=classes), count


def _about(side: Side, count: int | None) -> str:
    classes = f" in {len(side.classes)} classes" if side.classes else ""
    if side.kind == "moments":
        return f"{side.name}: mean and covariance from {side.path}"
    what = {
        "images": "published; its features are computed where they are not there",
        "statistics": "published statistics; nothing is computed",
        "raw": f"raw; packed into packed/{side.name}, byte for byte, and then seen by the encoder",
    }[side.kind]
    return f"{side.name}: {count:,} images{classes} in {side.path}: {what}"


def _figures(encoder: Encoder, counts: dict[str, int | None], config: EvaluateImagesConfig) -> Iterator[str]:
    known = [count for count in counts.values() if count is not None]
    frechet, *others = needs(encoder.metric_name, encoder.dim)
    if len(known) < len(counts):
        yield f"figures: {frechet.figure} alone, since the others need features"
        return
    fake = counts["fake"] or 0
    have = {frechet.figure: min(known), others[0].figure: min(fake, config.kept_features)}
    have |= {need.figure: min(*known, config.kept_features) for need in others[1:]}
    there = [need.figure for need in (frechet, *others) if have[need.figure] >= need.images]
    yield f"figures: {', '.join(there) or 'none'}"
    for need in (frechet, *others):
        if have[need.figure] < need.images:
            yield f"left out: {need.figure} needs {need.images:,} images a set, there are {have[need.figure]:,}"


def _judged(judge: tuple[Path, Manifest], real: Side) -> Iterator[str]:
    missing = without_yardstick(real)
    figures = AGREEMENT if missing else f"{AGREEMENT}, {AGREEMENT_REAL}"
    yield f"judge: {judge[0]}, of classes {listed_classes(judge[1].classes or [])}: {figures}"
    if missing:
        yield f"left out: {missing}"


if __name__ == "__main__":
    sys.exit(print_preview(preview, EvaluateImagesConfig, STAGE))
