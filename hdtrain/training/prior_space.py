"""What a prior is trained on: grids, classes, texts and numbers; and what its manifest says of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.prior import NumericCondition, TextCondition, TrainPriorConfig
from hdtrain.data.grid_sources import Dataset, GridSource, SingleImages, SlideCrops, read_slides
from hdtrain.data.images import labelled_classes
from hdtrain.data.standard import Standard, measure
from hdtrain.data.training_grids import TrainingGrids, check_keys
from hdtrain.distributed.world import World
from hdtrain.errors import ConfigError
from hdtrain.features.text_tower import load_text_tower
from hdtrain.formats.embedding_space import check_same_encoder
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.vectors import VectorTable, read_captions, read_vectors
from hdtrain.models.prior import GridPrior, build_prior
from hdtrain.text import counted

ManifestOf = Callable[[Path], Manifest]


@dataclass(frozen=True)
class PriorSpace:
    """Training and validation samples, and how their numbers are standardised."""

    source: TrainingGrids
    validation: TrainingGrids | None
    embeddings: Standard
    numeric: Standard | None


def describe(config: TrainPriorConfig, manifest_of: ManifestOf) -> dict[str, Any]:
    """What the prior's manifest says of its space and conditions.

    Raises:
        ManifestError: the grids come from different encoders, or classes are wanted and missing or different.
        ConfigError: a token that is not there, or slides' grids taken for images.
        DataError: a file of vectors or captions cannot be read.
        HdtrainError: the text tower's package is not installed.
    """
    paths = [*config.grids, *([config.validation] if config.validation else [])]
    _check_unit(config, manifest_of)
    first = manifest_of(paths[0]).info
    for path in paths[1:]:
        info = {**manifest_of(path).info, "tokens": first["tokens"], "token_order": None}  # one of them is looked at
        check_same_encoder(str(path), info, str(paths[0]), first)
    told: dict[str, Any] = {
        "embedding": {**{key: first[key] for key in ("dim", "encoder", "encoder_hash")}, "token": config.token},
        "unit": config.unit,
        "rows": config.size[0],
        "columns": config.size[1],
        "class_conditional": config.class_conditional,
        "dropout": config.dropout,
        "dropouts": list(config.dropouts),
    }
    if config.text is not None:
        told["text"] = {"dim": text_vectors(config.text).dim, "tower": _tower(config.text)}
    if config.numeric is not None:
        table = numeric_vectors(config.numeric)
        told["numeric"] = {"dim": table.dim, "names_hash": table.names_hash}
    classes_of(config, manifest_of)
    return told


def _check_unit(config: TrainPriorConfig, manifest_of: ManifestOf) -> None:
    problems = []
    for path in [*config.grids, *([config.validation] if config.validation else [])]:
        manifest = manifest_of(path)
        if manifest.kind == "grids" and config.unit == "images":
            problems.append(f"unit: {path} holds grids of slides, no images; leave unit out")
        if manifest.kind == "embeddings" and config.token >= manifest.info["tokens"]:
            tokens = manifest.info["tokens"]
            problems.append(f"token: {path} has {counted(tokens, 'token')} an image, from 0 on; got {config.token}")
    if problems:
        raise ConfigError("train-prior", problems)


def classes_of(config: TrainPriorConfig, manifest_of: ManifestOf) -> list[str] | None:
    """The classes, in label order; None for a prior without.

    Raises:
        ManifestError: grids are unlabelled, or have different classes.
    """
    if not config.class_conditional:
        return None
    paths = [*config.grids, *([config.validation] if config.validation else [])]
    return labelled_classes([(path, manifest_of(path)) for path in paths])


def build(config: TrainPriorConfig, manifest_of: ManifestOf) -> GridPrior:
    """A fresh network of the right sizes."""
    told, classes = describe(config, manifest_of), classes_of(config, manifest_of)
    dims = (told[name]["dim"] if name in told else 0 for name in ("text", "numeric"))
    return build_prior(config.preset, told["embedding"]["dim"], len(classes or ()), *dims)


def open_space(config: TrainPriorConfig, manifest_of: ManifestOf) -> PriorSpace:
    """Open what `config` names. A collective: ranks share the pass over all embeddings that measures mean and std.

    Raises:
        DataError: no grid, no crop, or no key of a file is that of a grid.
    """
    classes = classes_of(config, manifest_of)
    datasets = [(path, manifest_of(path)) for path in config.grids]
    source = _source(config, datasets, classes)
    text = text_vectors(config.text) if config.text else None
    numbers = numeric_vectors(config.numeric) if config.numeric else None
    keys = source.keys() if text or numbers else []
    for name, table in (("text", text), ("numeric", numbers)):
        if table is not None:
            _see_who_lacks(table, keys, name, "slide" if config.unit == "slides" else "image")
    standard = None
    if numbers is not None:
        found, given = numbers.rows(keys)
        x = found[given].astype(np.float64)
        standard = Standard.of(len(x), x.sum(0), (x**2).sum(0))
        numbers = replace(numbers, vectors=standard.apply(numbers.vectors))
    conditions = (config.class_conditional, unit_vectors(text) if text else None, numbers)
    validation = None
    if config.validation:
        held_out = _source(config, [(config.validation, manifest_of(config.validation))], classes)
        validation = TrainingGrids(held_out, config.seed, *conditions)
    dim = int(manifest_of(config.grids[0]).info["dim"])
    embeddings = measure(len(source.sizes), dim, source.vectors)
    return PriorSpace(TrainingGrids(source, config.seed, *conditions), validation, embeddings, standard)


def _see_who_lacks(table: VectorTable, keys: list[str], name: str, unit: str) -> None:
    """Warn of keys without a vector, and refuse a file that has none of them."""
    missing = len(keys) - check_keys(table, keys, name)
    if missing and World.from_environment().is_main:
        print(f"warning: {counted(missing, unit)} of {len(keys):,} without {name}; it is hidden there")


def check_crops(config: TrainPriorConfig, manifest_of: ManifestOf) -> None:
    """See that there are samples to train on and, if it is asked for, to validate on; no embedding is read.

    Raises:
        DataError: no grid, or no crop.
    """
    if config.unit == "slides":
        for paths in (config.grids, [config.validation] if config.validation else []):
            if paths:
                _source(config, [(path, manifest_of(path)) for path in paths], None, outlines=True)


def _source(
    config: TrainPriorConfig, datasets: list[Dataset], classes: list[str] | None, outlines: bool = False
) -> GridSource:
    if config.unit == "images":
        return SingleImages(datasets, config.token)
    slides = read_slides(datasets, config.token, classes, outlines)
    return SlideCrops(slides, config.size, config.step, config.min_present)


@lru_cache(maxsize=4)
def text_vectors(condition: TextCondition) -> VectorTable:
    """Raw vectors by key: from the file, or of its captions by the tower."""
    if condition.vectors is not None:
        return read_vectors(condition.vectors)
    assert condition.captions is not None
    assert condition.tower is not None
    captions = read_captions(condition.captions)
    return VectorTable(tuple(captions), load_text_tower(condition.tower)(list(captions.values())))


@lru_cache(maxsize=4)
def numeric_vectors(condition: NumericCondition) -> VectorTable:
    """Raw numbers by key."""
    return read_vectors(condition.vectors)


@lru_cache(maxsize=4)
def _tower(condition: TextCondition) -> dict[str, str] | None:
    """What the manifest says of the tower.

    Raises:
        ConfigError: it gives vectors of another dimension than those of the file.
    """
    if condition.tower is None:
        return None
    tower, wanted = load_text_tower(condition.tower), text_vectors(condition).dim
    if (dim := tower(["text"]).shape[1]) != wanted:
        problem = f"text.tower: {condition.tower.folder} gives {dim} features, {condition.vectors} has {wanted}"
        raise ConfigError("train-prior", [f"{problem}; name the tower of the model that made the vectors"])
    return tower.info


def unit_vectors(table: VectorTable) -> VectorTable:
    """Vectors of texts as the prior sees them: of length √d, since their direction alone means something."""
    lengths = np.linalg.norm(table.vectors, axis=1, keepdims=True)
    return replace(table, vectors=table.vectors / np.maximum(lengths, 1e-12) * np.float32(table.dim**0.5))
