"""Writing large shards: hashed beside the writing, published whole, and nothing left of one that failed."""

import contextlib
import json
import os
import resource
import threading

import numpy as np
import pytest

from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.hashed_file import HashedFile
from hdtrain.formats.shards import ShardReader, ShardWriter, Sidecar, sidecar_path
from hdtrain.formats.tar import CHUNK_BYTES


def hash_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sha256")]


def payload(index, size=100_000):
    return np.random.default_rng(index).bytes(size)


def test_the_hash_of_a_shard_of_many_chunks_is_that_of_its_file(tmp_path):
    with ShardWriter(tmp_path / "0.tar") as writer:
        for index in range(220):
            writer.add(f"k{index}", "jpg", payload(index), {"x": index}, index % 3)
        writer.add_member("large.bin", payload(0, 3 * CHUNK_BYTES))
    sidecar = Sidecar.read(sidecar_path(tmp_path / "0.tar"))
    assert sidecar.sha256 == sha256_file(tmp_path / "0.tar")
    assert sidecar.bytes == (tmp_path / "0.tar").stat().st_size > 10 * CHUNK_BYTES
    reader = ShardReader(tmp_path / "0.tar")
    assert all(bytes(reader.image(i)) == payload(i) and reader.meta(i) == {"x": i} for i in (0, 11, 119))
    assert not hash_threads()


def test_a_sidecar_is_plain_json_with_a_column_a_line(tmp_path):
    with ShardWriter(tmp_path / "0.tar") as writer:
        for index in range(3):
            writer.add(f"k{index}", "jpg", b"x", {}, None if index else 4)
        writer.sidecar.failed = {"größe": 1}
    text = sidecar_path(tmp_path / "0.tar").read_text()
    tree = json.loads(text)
    assert ' "keys": ["k0", "k1", "k2"],\n' in text
    assert (tree["labels"], tree["class_counts"], tree["failed"]) == ([4, None, None], {"4": 1}, {"größe": 1})
    assert len(text.splitlines()) == len(tree) + 2


@pytest.fixture
def largest_file():
    """`largest_file(n)`: from now on the system refuses to let a file grow beyond n bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("samples", "room"), [(1, 10_000), (100, 10_000), (100, 5 * CHUNK_BYTES), (12, 1_200_000)])
def test_a_disk_that_fills_up_stops_the_writer_and_leaves_nothing(tmp_path, largest_file, samples, room):
    def write():
        with ShardWriter(tmp_path / "0.tar") as writer:
            for index in range(samples):
                writer.add(f"k{index}", "jpg", payload(index), {})

    largest_file(room)
    with pytest.raises(OSError, match="File too large"):
        write()
    assert not list(tmp_path.iterdir())
    assert not hash_threads()


def test_a_file_that_lost_what_was_written_to_it_has_no_hash(tmp_path):
    path = tmp_path / "0.tar"
    with path.open("wb") as stream, contextlib.closing(HashedFile()) as file:
        file.stream = stream
        file.write(b"x" * 5000)
        stream.flush()
        os.truncate(path, 1000)
        file.hash_written()
        with pytest.raises(OSError, match=r"0.tar: 1000 bytes, although 5000 were written"):
            file.hexdigest()
    assert not hash_threads()
