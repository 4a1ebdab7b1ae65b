"""`select` through its stage on the artefacts of `tiny_chain`."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tiny_chain import Chain, run_here

from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.shards import open_shards

Sample = tuple[int | None, bytes, dict[str, Any]]


def config(chain: Chain, **changes: Any) -> dict[str, Any]:
    """Ten real images a class, six candidates; φ is the encoder, and the gates see no centroids."""
    return {
        "real": [str(chain["labelled"])],
        "candidates": [str(chain["candidates"])],
        "encoder": {"kind": "classifier", "classifier": str(chain["phi"])},
        "classifier": str(chain["phi"]),
        "gates": {"nearest_centroid": False},
        "ratios": [0.5],
        "batch_size": 4,
        "resolution": 32,
        **changes,
    }


def select(directory: Path, config: dict[str, Any]) -> Manifest:
    """Run it here; it must end well."""
    assert run_here("select", directory, config) == 0
    return read_manifest(directory)


def refused(directory: Path, config: dict[str, Any], capsys: Any) -> str:
    """Run it here; it must be refused. The message."""
    assert run_here("select", directory, config) == 2
    assert not (directory / "manifest.json").exists()
    return str(capsys.readouterr().err)


def rows(run: Path) -> list[dict[str, Any]]:
    """`index.parquet`."""
    return list(pq.read_table(run / "index.parquet").to_pylist())


def samples(directory: Path) -> dict[str, Sample]:
    """Key to label, encoded image and metadata."""
    return {
        reader.sidecar.keys[i]: (reader.sidecar.labels[i], bytes(reader.image(i)), reader.meta(i))
        for reader in open_shards(directory, read_manifest(directory, ("images",)))
        for i in range(reader.sidecar.samples)
    }


def threshold(chain: Chain, directory: Path, name: str, passing: int) -> float:
    """The confidence that `passing` of the class's candidates reach."""
    select(directory, config(chain))
    return sorted((row["confidence"] for row in rows(directory) if row["class"] == name), reverse=True)[passing - 1]
