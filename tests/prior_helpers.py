"""Grids of two classes for the prior: `stripes` alternate from column to column, `flat` ones do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdtrain.data.embedding_index import SCHEMA
from hdtrain.formats.atomic import canonical_json, sha256_bytes, sha256_file
from hdtrain.formats.embedding_grid import EmbeddingGrid, write_grid
from hdtrain.formats.manifest import FieldSpec, Manifest, publish
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import shard_entry

CLASSES = ["flat", "stripes"]
DIM = 6
ENCODER = {"name": "made-up", "weights": "none", "resize": "none", "resolution": 32, "dim": DIM}


def toy_grid(number: int, rows: int = 6, columns: int = 6, hole: bool = False) -> EmbeddingGrid:
    """Class `number % 2`: the first feature is its sign; the second alternates along the columns of `stripes`."""
    rng, label = np.random.default_rng(number), number % 2
    values = rng.normal(0, 0.3, (rows, columns, DIM))
    values[..., 0] += 3 if label else -3
    if label:
        values[..., 1] += 4 * (-1.0) ** (np.arange(columns) + number // 2 % 2)
    present = np.ones((rows, columns), np.bool_)
    present[0, 0] = not hole
    y, x = np.mgrid[:rows, :columns].astype(np.int64) * 32
    values = np.where(present[..., None], values, 0).astype(np.float16).astype(np.float32)
    facts: dict[str, Any] = {"mpp": 0.5, "label": CLASSES[label], "encoder_hash": encoder_hash(ENCODER)}
    return EmbeddingGrid(f"slide{number:03d}", values, present, x, y, **facts)


def encoder_hash(encoder: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json(encoder))


def toy_grids(count: int, **changes: Any) -> list[EmbeddingGrid]:
    return [toy_grid(number, **changes) for number in range(count)]


def publish_grids(directory: Path, grids: list[EmbeddingGrid], **encoder: Any) -> Path:
    """A run of kind `grids`, its sizes those of the first grid."""
    for grid in grids:
        write_grid(directory / "grids" / f"{grid.name}.npz", grid)
    files = {f"grids/{grid.name}.npz": sha256_file(directory / "grids" / f"{grid.name}.npz") for grid in grids}
    info = {**_info(encoder), "rows": grids[0].rows, "columns": grids[0].columns, "mpp": 0.5, "prior": "0" * 16}
    publish(directory, Manifest(kind="grids", files=files, classes=CLASSES, info=info, **_made("sample-grids")))
    return directory


def publish_slides(directory: Path, grids: list[EmbeddingGrid]) -> Path:
    """The same as a run of kind `embeddings`: cells in a random order, in three shards, with an index.

    The grids may hold several tokens a cell; their names are told if they are known.
    """
    cells = [(grid, row, column) for grid in grids for row, column in np.argwhere(grid.present).tolist()]
    cells = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
    (directory / "shards").mkdir(parents=True)
    rows, entries = [], []
    for number in range(3):
        part = cells[number::3]
        path = directory / "shards" / f"embeddings-{number:06d}.tar"
        keys = [f"{grid.name}-{row}-{column}" for grid, row, column in part]
        labels = [CLASSES.index(grid.label) for grid, _, _ in part]
        records = np.stack([grid.embeddings[row, column] for grid, row, column in part])
        records = records.reshape(len(part), -1, DIM).astype(np.float16)
        write_record_shard(path, records, keys, labels, 16)
        entries.append(shard_entry(path, directory))
        for record, (grid, row, column) in enumerate(part):
            rows.append(
                {
                    "key": keys[record],
                    "shard": path.name,
                    "record": record,
                    "slide": grid.name,
                    "row": row,
                    "column": column,
                    "x": column * 32,
                    "y": row * 32,
                    "mpp": 0.5,
                    "label": grid.label,
                }
            )
    index = directory / "index.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), index)
    tokens = grids[0].tokens
    info = {**_info({}), "grids": {grid.name: [grid.rows, grid.columns] for grid in grids}, "tokens": tokens.count}
    if tokens.order is not None:
        info["token_order"] = list(tokens.order)
    field = FieldSpec(dtype="float16", shape=[tokens.count, DIM], layout="token, feature; not normalised")
    files = {"index.parquet": sha256_file(index)}
    manifest = Manifest(
        kind="embeddings",
        fields={"embedding": field},
        shards=entries,
        files=files,
        classes=CLASSES,
        info=info,
        **_made("embed"),
    )
    publish(directory, manifest)
    return directory


def _info(encoder: dict[str, Any]) -> dict[str, Any]:
    described = {**ENCODER, **encoder}
    return {"encoder": described, "encoder_hash": encoder_hash(described), "tokens": 1, "dim": described["dim"]}


def _made(stage: str) -> dict[str, Any]:
    return {"stage": stage, "fingerprint": "0" * 64, "commit": ""}


def prior_config(run: Path, images: int, **changes: Any) -> dict[str, Any]:
    """Of `train-prior`, tiny."""
    return {
        "grids": [str(run)],
        "rows": 3,
        "columns": 3,
        "stride": 1,
        "class_conditional": True,
        "preset": "dit-tiny",
        "batch": {"global_batch_size": 8},
        "optim": {"lr": 3e-3},
        "ema": {"decay": 0.98},
        "validation_images": 16,
        "duration": {"images": images, "log_every_steps": 1, "visualise_every_images": 8 * 1000},
    } | changes
