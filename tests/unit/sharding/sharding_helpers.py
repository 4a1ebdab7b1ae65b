"""Reading a packed data set back, and making image files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import open_shards


class Run:
    """One packed data set, read back."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.path, ("images",))

    @property
    def index(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in pq.read_table(RunDir(self.path).index).to_pylist()}

    @property
    def samples(self) -> dict[str, tuple[bytes, dict[str, Any]]]:
        return {
            key: (bytes(reader.image(i)), reader.meta(i))
            for reader in open_shards(self.path, self.manifest)
            for i, key in enumerate(reader.sidecar.keys)
        }

    @property
    def files(self) -> dict[str, bytes]:
        """Shards, sidecars and index: everything that must not depend on how the run went."""
        paths = [*RunDir(self.path).shards.iterdir(), RunDir(self.path).index]
        return {path.name: path.read_bytes() for path in paths}


def prepare(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    RunDir(directory).config.write_text(yaml.safe_dump(config))
    return directory


def noise(size_px: int = 16, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size_px, size_px, channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
