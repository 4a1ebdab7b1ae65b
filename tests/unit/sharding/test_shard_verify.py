import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sharding_helpers import Run, encode, noise

from hdtrain.formats.atomic import write_json
from hdtrain.formats.manifest import Manifest, publish
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, Sidecar, shard_entry, sidecar_path

Check = Callable[..., dict | str]


@pytest.fixture
def packed(pack: Callable[..., Run], make_images: Callable[..., Path]) -> Run:
    return pack(sources=[{"path": str(make_images("raw", {"a": 5, "b": 4}))}], samples_per_shard=3)


def shard(run: Run, number: int) -> Path:
    return RunDir(run.path).shards / f"shard-{number:06d}.tar"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def rewrite_manifest(run: Run, **changes: object) -> None:
    publish(run.path, run.manifest.model_copy(update=changes))


def test_whole_shards_give_their_figures(packed: Run, check: Check) -> None:
    total = sum(path.stat().st_size for path in RunDir(packed.path).shards.glob("*.tar"))
    expected = {"num_samples": 9, "num_shards": 3, "num_looked_at": 9, "bytes": total, "compared_with": {}}
    expected["class_counts"] = {"a": 5, "b": 4}
    assert check(packed.path) == expected
    assert check(packed.path, decode=False) == expected


def test_one_flipped_bit_is_found_and_its_sample_named(packed: Run, check: Check) -> None:
    sidecar = Sidecar.read(sidecar_path(shard(packed, 1)))
    flip(shard(packed, 1), sidecar.offsets[1] + sidecar.sizes[1] // 2)
    message = check(packed.path)
    assert "shard-000001.tar: sha256" in message
    assert "altered since it was written" in message
    assert f"sample {sidecar.keys[1]}: image cannot be decoded" in message


def test_a_flipped_bit_is_found_without_decoding(packed: Run, check: Check) -> None:
    flip(shard(packed, 1), Sidecar.read(sidecar_path(shard(packed, 1))).offsets[1] + 100)
    assert "1 problem in the shards" in check(packed.path, decode=False)


def test_all_problems_are_reported_at_once(packed: Run, check: Check) -> None:
    data = shard(packed, 0).read_bytes()
    shard(packed, 0).write_bytes(data[: len(data) // 2])
    shard(packed, 1).unlink()
    sidecar_path(shard(packed, 2)).unlink()
    message = check(packed.path)
    assert f"shard-000000.tar: {len(data) // 2} bytes, the manifest says {len(data)}: truncated" in message
    assert "lies beyond the end of the file" in message
    assert "shard-000001.tar: shard is missing" in message
    assert "shard-000002.json: sidecar is missing" in message


def test_an_empty_file_in_place_of_a_shard_is_found(packed: Run, check: Check) -> None:
    shard(packed, 0).write_bytes(b"")
    assert "0 bytes, the manifest says" in check(packed.path)


def test_swapped_sidecars_are_named(packed: Run, check: Check) -> None:
    paths = [sidecar_path(shard(packed, number)) for number in (0, 2)]
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    message = check(packed.path)
    assert "shard-000000.json: is the sidecar of shards/shard-000002.tar" in message
    assert "shard-000002.json: is the sidecar of shards/shard-000000.tar" in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 99}, "sidecar version 99"),
        ({"samples": 2}, "do not have 2 members each"),
        ({"offsets": [512, 1024, 1536]}, "no member"),
        ({"keys": ["x", "y", "z"]}, "no member x.png"),
        ({"keys": ["x" * 200, "y", "z"]}, "no member xxx"),
        ({"labels": [None, None, None]}, "has class_index"),
    ],
)
def test_an_edited_sidecar_is_found(packed: Run, check: Check, change: dict[str, object], problem: str) -> None:
    path = sidecar_path(shard(packed, 0))
    write_json(path, {**json.loads(path.read_bytes()), **change})
    assert problem in check(packed.path)


def test_counts_must_agree_with_the_manifest(packed: Run, check: Check) -> None:
    rewrite_manifest(packed, info={**packed.manifest.info, "class_counts": {"a": 4, "b": 5}})
    assert "class counts in the shards are {'a': 5, 'b': 4}, the manifest says {'a': 4, 'b': 5}" in check(packed.path)


def test_an_altered_index_is_found(packed: Run, check: Check) -> None:
    flip(RunDir(packed.path).index, 50)
    assert "index.parquet: altered since it was published" in check(packed.path)


def publish_shard(directory: Path, images: list[tuple[str, str, bytes]]) -> None:
    """Shards made by other means than `pack`: one image each."""
    entries = []
    for number, (key, ext, image) in enumerate(images):
        path = RunDir(directory).shards / f"{number}.tar"
        with ShardWriter(path) as writer:
            writer.add(key, ext, image, {"key": key, "width": 16, "height": 16})
        entries.append(shard_entry(path, directory))
    publish(directory, Manifest(kind="images", stage="x", fingerprint="", commit="", shards=entries))


def test_the_same_key_in_two_shards_is_found(tmp_path: Path, check: Check) -> None:
    png = encode(Image.fromarray(noise()), "PNG")
    publish_shard(tmp_path / "other", [("k", "png", png), ("k", "png", png)])
    assert "key k is in shards/0.tar and again in shards/1.tar" in check(tmp_path / "other")


def test_images_of_another_kind_than_said_are_found(tmp_path: Path, check: Check) -> None:
    gray, wide = Image.fromarray(noise()[..., 0]), Image.fromarray(noise(24))
    publish_shard(
        tmp_path / "other",
        [
            ("gray", "png", encode(gray, "PNG")),
            ("jpeg", "png", encode(Image.fromarray(noise()), "JPEG")),
            ("wide", "png", encode(wide, "PNG")),
            ("good", "png", encode(Image.fromarray(noise()), "PNG")),
        ],
    )
    message = check(tmp_path / "other")
    assert "sample gray: image is not an 8-bit RGB png" in message
    assert "sample jpeg: image is not an 8-bit RGB png" in message
    assert "sample wide: image is 24×24, wide.json says 16×16" in message
    assert "good" not in message


def test_a_tar_repacked_by_other_tools_is_found(packed: Run, check: Check) -> None:
    path = shard(packed, 0)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, data in reversed(members):
            tar.addfile(member, io.BytesIO(data))
    assert "no member" in check(packed.path)
