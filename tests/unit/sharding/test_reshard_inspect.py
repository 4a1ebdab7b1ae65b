"""`reshard`, `inspect` and the partial `verify`, through the stages."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sharding_helpers import Run, prepare

from hdtrain.errors import HdtrainError, ManifestError, ShardError
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import Sidecar, sidecar_path
from hdtrain.stages import inspect, reshard, verify
from hdtrain.stages.base import StageContext

MakeImages = Callable[..., Path]
Pack = Callable[..., Run]


@pytest.fixture
def packed(pack: Pack, make_images: MakeImages) -> Run:
    raw = make_images("raw", {"a": 30, "b": 20})
    (raw / "a" / "wreck.png").write_bytes(b"no")
    return pack(sources=[{"path": str(raw), "mpp": 0.5}], samples_per_shard=20, max_failed_share=0.5)


def run(stage: str, module: object, directory: Path, **config: object) -> Run:
    parsed, context = StageContext.open(stage, prepare(directory, **config))
    module.run(parsed, context)  # type: ignore[attr-defined]
    return Run(directory)


def test_resharding_keeps_every_byte_and_cuts_anew(packed: Run, tmp_path: Path) -> None:
    again = run("reshard", reshard, tmp_path / "again", images=[str(packed.path)], samples_per_shard=7, seed=5)
    assert again.samples == packed.samples
    assert list(again.samples) != list(packed.samples)
    assert [shard.samples for shard in again.manifest.shards] == [7] * 7 + [1]
    assert again.manifest.classes == ["a", "b"]
    assert again.manifest.info["class_counts"] == {"a": 30, "b": 20}
    for entry in again.manifest.shards:
        sidecar = Sidecar.read(sidecar_path(again.path / entry.name))
        assert {again.index[key]["shard"] for key in sidecar.keys} == {Path(entry.name).name}
    assert again.index["raw_a-wreck"]["status"] == "rejected"
    tars = [str(again.path / entry.name) for entry in again.manifest.shards]
    read = {sample["__key__"]: sample["png"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert read == {key: image for key, (image, _) in packed.samples.items()}
    assert run("verify", verify, tmp_path / "v", images=str(again.path)).path.exists()


def test_resharding_without_shuffle_keeps_the_order(packed: Run, tmp_path: Path) -> None:
    plain = run("reshard", reshard, tmp_path / "plain", images=[str(packed.path)], samples_per_shard=11, shuffle=False)
    assert list(plain.samples) == list(packed.samples)


def test_data_sets_are_joined_and_a_key_in_both_is_refused(
    packed: Run, pack: Pack, make_images, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    other = pack("other", sources=[{"path": str(make_images("more", {"a": 3, "b": 3}, seed=9))}])
    both = run("reshard", reshard, tmp_path / "both", images=[str(packed.path), str(other.path)])
    assert both.samples == packed.samples | other.samples
    assert both.manifest.info["class_counts"] == {"a": 33, "b": 23}
    with pytest.raises(ShardError, match="the same key is in two of"):
        run("reshard", reshard, tmp_path / "twice", images=[str(packed.path), str(packed.path)])
    unlabelled = pack("flat", sources=[{"path": str(make_images("flat", 3))}])
    with pytest.raises(ManifestError, match="only data sets of one split and the same classes"):
        run("reshard", reshard, tmp_path / "mixed", images=[str(packed.path), str(unlabelled.path)])


def test_inspection_shows_every_class_and_measures_every_source(packed: Run, tmp_path: Path) -> None:
    run("inspect", inspect, tmp_path / "seen", images=str(packed.path), per_class=4, thumbnail_px=32)
    manifest = read_manifest(tmp_path / "seen", ("inspection",))
    assert set(manifest.files) == {"contact.png", "histograms.png", "statistics.json"}
    sheet = np.asarray(Image.open(tmp_path / "seen" / "contact.png"))
    assert sheet.shape == (2 * (32 + 18), 4 * 32, 3)
    rows = [sheet[18:50], sheet[68:100]]  # the fixture's classes are noise around a colour each
    assert [int(np.argmax(row.reshape(-1, 3).mean(0))) for row in rows] == [0, 1]
    assert all((row != 255).any(-1).mean() > 0.95 for row in rows)
    figures = json.loads((tmp_path / "seen" / "statistics.json").read_text())
    assert figures["sizes"] == {"16x16": 50}
    assert figures["class_counts"] == {"a": 30, "b": 20}
    assert figures["sources"]["raw"]["num"] == 50
    from skimage.color import rgb2lab

    from sharding.images import decode

    lightness = [rgb2lab(decode(image).pixels)[..., 0].mean() for image, _ in packed.samples.values()]
    assert figures["sources"]["raw"]["lightness"]["mean"] == pytest.approx(np.mean(lightness), abs=1.0)


def message(directory: Path, **config: object) -> str:
    try:
        run("verify", verify, directory, **config)
    except HdtrainError as error:
        return str(error)
    return ""


def test_a_sample_is_looked_at_without_summing_the_rest(packed: Run, tmp_path: Path) -> None:
    assert message(tmp_path / "v", images=str(packed.path), sample=10) == ""
    assert read_manifest(tmp_path / "v").info["num_looked_at"] == 10
    for tar in RunDir(packed.path).shards.glob("*.tar"):  # every image is broken, so any ten are
        data, sidecar = bytearray(tar.read_bytes()), Sidecar.read(sidecar_path(tar))
        for offset, size in zip(sidecar.offsets, sidecar.sizes, strict=True):
            data[offset + size // 2 : offset + size // 2 + 8] = bytes(8)
        tar.write_bytes(data)
    said = message(tmp_path / "v", images=str(packed.path), sample=10)
    assert "10 problems" in said
    assert "sha256" not in said
    assert said == message(tmp_path / "w", images=str(packed.path), sample=10)
    assert said != message(tmp_path / "w", images=str(packed.path), sample=10, seed=1)


def test_a_missing_shard_is_found_even_if_no_sample_was_drawn_from_it(packed: Run, tmp_path: Path) -> None:
    tar = sorted(RunDir(packed.path).shards.glob("*.tar"))[-1]
    tar.unlink()
    assert f"{tar}: shard is missing" in message(tmp_path / "v", images=str(packed.path), sample=1)


def test_a_data_set_without_index_cannot_be_compared_and_says_so(packed: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    prepare(other)
    shutil.copy(RunDir(packed.path).manifest, other)
    said = message(tmp_path / "v", images=str(packed.path), disjoint_from=[str(other)])
    assert f"{other}: no index.parquet, so it cannot be compared" in said


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_the_new_shards(packed: Run, tmp_path: Path, cli: Callable[..., object], ranks: int) -> None:
    command = ["reshard", f"images=[{packed.path}]", "samples_per_shard=4", "--ranks"]
    cli(*command, 1, "--out", "one")
    cli(*command, ranks, "--out", "several")
    assert Run(tmp_path / "several").files == Run(tmp_path / "one").files


def test_a_damaged_shard_does_not_get_a_new_checksum(packed: Run, tmp_path: Path) -> None:
    tar = sorted(RunDir(packed.path).shards.glob("*.tar"))[1]
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{tar.name} is missing or altered since it was written"):
        run("reshard", reshard, tmp_path / "again", images=[str(packed.path)])


def test_a_tar_that_the_manifest_does_not_know_is_found(packed: Run, tmp_path: Path) -> None:
    stray = RunDir(packed.path).shards / "shard-000099.tar"
    stray.write_bytes(b"")
    assert f"{stray}: not in the manifest" in message(tmp_path / "v", images=str(packed.path))
