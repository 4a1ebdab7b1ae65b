"""What was made from embeddings, beside what was asked for: images and their sources, or a painting and its grid."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.data.embeddings_by_key import embeddings_by_key
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.errors import DataError, ManifestError
from hdtrain.evaluation.fidelity_fit import check
from hdtrain.formats.embedding_grid import EmbeddingGrid, read_grid
from hdtrain.formats.embedding_space import other_sizes
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import open_shards
from hdtrain.formats.tokens import Tokens

ManifestOf = Callable[[Path], Manifest]


@dataclass(frozen=True)
class Compared:
    """Embeddings of what was made, and those that were asked for among others."""

    made: np.ndarray
    """(n, t, d)."""
    candidates: np.ndarray
    """(m, t, d)."""
    sources: Int64[np.ndarray, " n"]
    """Row of `candidates` that each was made from."""
    labels: Int64[np.ndarray, " m"]
    """Of the candidates, −1 where there is none."""
    classes: list[str] | None
    encoder: dict[str, Any]
    images: str
    """Identity of the images or the painting."""
    asked: str
    tokens: list[str] | None = None
    """Of a painting of several tokens a cell those that are compared; None: all, or there is one."""
    doubts: tuple[str, ...] = ()
    """For people."""


def read_compared(config: EvaluateFidelityConfig, manifest_of: ManifestOf) -> Compared:
    """Read what `config` names.

    Raises:
        ManifestError: the runs do not belong together, or an image does not say what it was made from.
        DataError: a source or a cell has no embedding, or there is nothing to choose from.
    """
    check(config, manifest_of)
    return _of_images(config, manifest_of) if config.images else _of_painting(config, manifest_of)


def _of_images(config: EvaluateFidelityConfig, manifest_of: ManifestOf) -> Compared:
    assert config.images is not None, "checked by the config"
    assert config.asked is not None, "checked by the config"
    made, asked, images = (manifest_of(path) for path in (config.made, config.asked, config.images))
    keys, source_keys = _sources(config.images, images)
    known = embeddings_by_key(config.asked, asked)
    chosen = _candidates(known.keys(), source_keys, config)
    row_of = {key: row for row, key in enumerate(chosen)}
    return Compared(
        made=RecordsByKey([(config.made, made)], "embedding")(keys),
        candidates=known(chosen),
        sources=np.array([row_of[key] for key in source_keys], np.int64),
        labels=np.array([known.label(key) for key in chosen], np.int64),
        classes=asked.classes,
        encoder=asked.info["encoder"],
        images=images.identity,
        asked=asked.identity,
        doubts=tuple(other_sizes(str(config.asked), asked.info, str(config.made), made.info)),
    )


def _of_painting(config: EvaluateFidelityConfig, manifest_of: ManifestOf) -> Compared:
    """Cell by cell.

    Raises:
        DataError: the embeddings are not of the painting's cells, or have no token of theirs.
        ManifestError: they are of another encoder.
    """
    assert config.painting is not None, "checked by the config"
    made, painting = manifest_of(config.made), manifest_of(config.painting)
    asked, found = read_grid(config.painting / "grid.npz", token=None), read_grid(config.made, token=None)
    found.check_encoder(asked.dim, asked.encoder_hash, str(config.painting))
    if found.present.shape != asked.present.shape:
        rows, columns = found.present.shape
        cell = painting.info["window"] * painting.info["factor"]
        raise DataError(
            f"made {config.made} has {rows} × {columns} cells, the painting {asked.rows} × {asked.columns}; cut it "
            f"into tiles of {cell} px without overlap (duplicates=keep min_tissue=0) and embed these"
        )
    cells = found.present & asked.present
    count = int(cells.sum())
    if count < 2:
        raise DataError(f"made {config.made}: {count} cells of the painting have embeddings; two are needed")
    ours, theirs = _same_tokens(asked.tokens, found.tokens, config)
    names = asked.token_order if asked.tokens.count > 1 else None
    return Compared(
        made=_tokens_of(found, cells)[:, theirs],
        candidates=_tokens_of(asked, cells)[:, ours],
        sources=np.arange(count),
        labels=np.full(count, -1),
        classes=None,
        encoder=made.info["encoder"],
        images=painting.identity,
        asked=painting.files["grid.npz"],
        tokens=[names[token] for token in ours] if names else None,
    )


def _tokens_of(grid: EmbeddingGrid, cells: Bool[np.ndarray, "r c"]) -> Float32[np.ndarray, "n k d"]:
    return grid.embeddings[cells].reshape(int(cells.sum()), -1, grid.dim)


def _same_tokens(asked: Tokens, found: Tokens, config: EvaluateFidelityConfig) -> tuple[list[int], list[int]]:
    """Numbers of the tokens that a painting's grid and the embeddings of its cells both have.

    Raises:
        DataError: there is none, or nobody knows which are which.
    """
    if asked.order is not None and found.order is not None:
        common = [name for name in asked.order if name in found.order]
        if common:
            return [asked.order.index(name) for name in common], [found.order.index(name) for name in common]
    elif asked.count in (1, found.count):
        return list(range(asked.count)), list(range(asked.count))
    raise DataError(
        f"made {config.made} has {found} a cell, and {config.painting} was painted from {asked}; embed the cells with "
        "the views of the painting's grid, or at least with one of them"
    )


def _sources(path: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Keys of the images, and of what each was made from.

    Raises:
        ManifestError: an image does not say.
    """
    keys, sources = list[str](), list[str]()
    for shard in open_shards(path, manifest):
        for number, key in enumerate(shard.sidecar.keys):
            source = shard.meta(number).get("source_key")
            if source is None:
                raise ManifestError(
                    f"images {path}: {key} does not say which embedding it is of; name images that "
                    "`hdtrain sample embeddings.run=RUN` made (without embeddings.between)"
                )
            keys.append(key)
            sources.append(source)
    return keys, sources


def _candidates(names: list[str], sources: list[str], config: EvaluateFidelityConfig) -> list[str]:
    """The sources, and as many others as there may be.

    Raises:
        DataError: a source is not among the embeddings, or there is nothing to choose from.
    """
    wanted, there = set(sources), set(names)
    if missing := sorted(wanted - there):
        raise DataError(
            f"asked {config.asked}: no embedding of {missing[0]} (and {len(missing) - 1} more sources of the images); "
            "name the embeddings that the images were made from"
        )
    others = [name for name in names if name not in wanted]
    room = max(0, config.max_candidates - len(wanted))
    if len(others) > room:
        drawn = np.random.default_rng(config.seed).choice(len(others), room, replace=False)
        others = [others[i] for i in sorted(drawn.tolist())]
    chosen = [name for name in names if name in wanted] + others
    if len(chosen) < 2:
        raise DataError(f"asked {config.asked}: holds one embedding, so there is nothing to tell it from")
    return chosen
