"""Small data sets on the disk, and a web server that gives them out."""

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_chain import draw

from hdtrain.formats.manifest import FieldSpec, Manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardWriter, shard_entry

NAMES = ["dots", "stripes"]
Dataset = tuple[Path, Manifest]


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Dataset]:
    """`write("name", [5, 4], broken={7})`: a data set of image shards of these sizes."""

    def make(name, sizes, broken=(), classes=NAMES, seed=0, root=tmp_path, kind="PNG") -> Dataset:
        rng, number, entries = np.random.default_rng(seed), 0, []
        for shard, size in enumerate(sizes):
            path = root / name / "shards" / f"{shard}.tar"
            with ShardWriter(path) as writer:
                for _ in range(size):
                    label = number % 2
                    data = encoded(draw(label, rng), kind)
                    data = b"\x89PNG no image" if number in broken else data
                    writer.add(f"{name}-{number}", kind.lower(), data, {}, label if classes else None)
                    number += 1
            entries.append(shard_entry(path, root / name))
        manifest = Manifest(kind="images", stage="shard", fingerprint="f", commit="c", shards=entries, classes=classes)
        return root / name, manifest

    return make


@pytest.fixture
def write_latents(tmp_path: Path) -> Callable[..., tuple[Dataset, dict[str, tuple[np.ndarray, int]]]]:
    """`write_latents("name", [7, 5])`: a data set of latent shards, and what it holds: key to (record, label)."""

    def make(name, sizes, seed=0):
        rng, entries, held = np.random.default_rng(seed), [], {}
        for shard, size in enumerate(sizes):
            records = rng.normal(size=(size, 2, 3, 4, 4)).astype(np.float16)
            keys = [f"{name}-{shard}-{i}" for i in range(size)]
            labels = [i % 2 for i in range(size)]
            path = tmp_path / name / "shards" / f"{shard}.tar"
            write_record_shard(path, records, keys, labels, per_member=3)
            entries.append(shard_entry(path, tmp_path / name))
            held |= dict(zip(keys, zip(records, labels, strict=True), strict=True))
        fields = {"moments": FieldSpec(dtype="float16", shape=[2, 3, 4, 4])}
        manifest = Manifest(kind="latents", stage="encode", fingerprint="f", commit="c", shards=entries, fields=fields)
        return (tmp_path / name, manifest), held

    return make


class Server:
    """Gives out the files below a folder; `asked` lists the paths that were asked for."""

    def __init__(self, folder: Path):
        self.asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(handler, *args: object) -> None:
                self.asked.append(handler.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """`serve(folder)`: a web server of its files, for the length of the test."""
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        servers.append(Server(folder))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
