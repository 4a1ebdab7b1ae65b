import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sharding_helpers import Run, encode, noise, prepare

import sharding.pack
import sharding.survey
from hdtrain.errors import DataError
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import Sidecar, sidecar_path
from sharding.images import decode

MakeImages = Callable[..., Path]
Pack = Callable[..., Run]


def tars(run: Run) -> list[Path]:
    return sorted(RunDir(run.path).shards.glob("*.tar"))


def test_webdataset_reads_every_sample(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {"b": 4, "a": 7})
    run = pack(sources=[{"path": str(raw), "mpp": 0.5}], samples_per_shard=4)
    seen = list(webdataset.WebDataset([str(tar) for tar in tars(run)], shardshuffle=False))
    assert len(seen) == 11
    for sample in seen:
        meta = json.loads(sample["json"])
        assert meta["key"] == sample["__key__"]
        assert sample["png"] == (raw / run.index[meta["key"]]["path"]).read_bytes()
        assert meta == {
            **{"source": "raw", "slide": None, "patient": None, "x": None, "y": None, "mpp": 0.5, "split": "train"},
            **{"key": meta["key"], "label": meta["label"], "width": 16, "height": 16},
            "class_index": ["a", "b"].index(meta["label"]),
        }
    assert Counter(json.loads(sample["json"])["label"] for sample in seen) == {"a": 7, "b": 4}


def test_gnu_tar_reads_the_same_bytes(pack: Pack, make_images: MakeImages) -> None:
    run = pack(sources=[{"path": str(make_images("raw", 3))}])
    (tar,) = tars(run)
    names = subprocess.run(["tar", "tf", tar], capture_output=True, text=True, check=True).stdout.split()
    assert names == [f"{key}.{ext}" for key in Sidecar.read(sidecar_path(tar)).keys for ext in ("png", "json")]
    for key, (image, _) in run.samples.items():
        assert subprocess.run(["tar", "xOf", tar, f"{key}.png"], capture_output=True, check=True).stdout == image


def test_the_same_input_gives_the_same_bytes(pack: Pack, make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", {"a": 20, "b": 20})
    (raw / "a" / "broken.png").write_bytes(b"no")
    config = {"samples_per_shard": 7, "max_failed_share": 0.1}
    first = pack("one", sources=[{"path": str(raw)}], **config)
    shutil.move(raw, tmp_path / "elsewhere" / "raw")
    moved = pack("two", sources=[{"path": str(tmp_path / "elsewhere" / "raw")}], **config)
    assert moved.files == first.files
    assert moved.manifest.identity == first.manifest.identity
    assert pack("three", sources=[{"path": str(tmp_path / "elsewhere" / "raw")}], seed=1, **config).files != first.files


def test_the_number_of_threads_does_not_matter(make_images: MakeImages, tmp_path: Path) -> None:
    from hdtrain.config.shards import ShardConfig

    raw = make_images("raw", 3, size_px=64)
    (raw / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    source = {"path": raw, "tile_images": True, "tile_px": 16, "stride_px": 8}
    config = ShardConfig.model_validate({"sources": [source], "samples_per_shard": 50, "max_failed_share": 0.1})
    for threads in (1, 5):
        sharding.pack.pack(config, RunDir(tmp_path / str(threads)), threads=threads)
    assert Run(tmp_path / "1").files == Run(tmp_path / "5").files


def test_shards_mix_sources_and_classes(pack: Pack, make_images: MakeImages) -> None:
    sources = [{"path": str(make_images(name, {"a": 30, "b": 30}, seed=i))} for i, name in enumerate(["one", "two"])]
    run = pack(sources=sources, samples_per_shard=40)
    index = run.index
    for tar in tars(run):
        rows = [index[key] for key in Sidecar.read(sidecar_path(tar)).keys]
        assert len(Counter((row["source"], row["label"]) for row in rows)) == 4
        assert {row["shard"] for row in rows} == {tar.name}
    assert run.manifest.info["sources"] == ["one", "two"]
    keys = list(pack("plain", sources=sources, shuffle=False).samples)
    assert keys == sorted(keys)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(pack: Pack, make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", {"a": 150, "b": 150})
    config = {"sources": [{"path": str(raw)}], "samples_per_shard": 3}
    whole = pack("whole", **config)
    directory = prepare(tmp_path / "killed", **config)
    run = RunDir(directory)
    command = [sys.executable, "-m", "hdtrain.stages", "shard", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not sidecar_path(run.shards / "shard-000003.tar").exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not run.manifest.exists()
    (run.shards / ".shard-000050.tar.1.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_ino for path in run.shards.glob("shard-00000[0-3].tar")}
    assert len(kept) == 4
    again = pack("killed", **config)
    assert {path: path.stat().st_ino for path in kept} == kept
    assert again.files == whole.files
    assert not run.work.exists()


def test_a_run_that_goes_on_does_not_decode_its_input_again(
    pack: Pack, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    config = {"sources": [{"path": str(make_images("raw", 9))}], "samples_per_shard": 3}
    with monkeypatch.context() as patch:
        patch.setattr(sharding.pack, "make_plan", die)
        with pytest.raises(KeyboardInterrupt):
            pack("out", **config)
    with monkeypatch.context() as patch:
        patch.setattr(sharding.survey, "judge", die)
        again = pack("out", **config)
    assert again.files == pack("fresh", **config).files


def test_a_run_that_goes_on_after_its_input_changed_keeps_nothing_stale(
    pack: Pack, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_images("raw", 9)
    config = {"sources": [{"path": str(raw)}], "samples_per_shard": 3}

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharding.pack, "write_indices", die)
        with pytest.raises(KeyboardInterrupt):
            pack("out", **config)
    Image.fromarray(noise(seed=5)).save(raw / "004.png")
    again = pack("out", **config)
    assert again.files == pack("fresh", **config).files
    assert encode(Image.fromarray(noise(seed=5)), "PNG") in [image for image, _ in again.samples.values()]


def test_a_file_that_changes_between_the_passes_stops_the_run_and_leaves_no_half_shard(
    pack: Pack, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = make_images("raw", 9)
    make_plan = sharding.pack.make_plan

    def change(*args: object) -> object:
        Image.fromarray(noise(seed=5)).save(raw / "004.png")
        return make_plan(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sharding.pack, "make_plan", change)
    with pytest.raises(DataError, match=r"004\.png: changed since the survey"):
        pack("out", sources=[{"path": str(raw)}])
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_too_many_bad_images_are_fatal_before_anything_is_written(
    pack: Pack, make_images: MakeImages, tmp_path: Path
) -> None:
    raw = make_images("raw", 8)
    for name in ("004.png", "006.png"):
        (raw / name).write_bytes((raw / name).read_bytes()[:300])
    with pytest.raises(DataError) as caught:
        pack("out", sources=[{"path": str(raw)}], max_failed_share=0.2)
    message = str(caught.value)
    assert "2 of 8 images cannot be used (25.0%)" in message
    assert "max_failed_share allows (20.0%)" in message
    assert f"{raw / '004.png'} (truncated or damaged)" in message
    assert not (tmp_path / "out" / "shards").exists()
    assert pack("out", sources=[{"path": str(raw)}], max_failed_share=0.25).manifest.num_samples == 6


def test_rejected_images_are_in_the_index_and_in_the_sidecar(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {"a": 6, "b": 6})
    (raw / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"0" * 100)
    (raw / "a" / "gone.png").symlink_to(raw / "nowhere.png")
    (raw / "b" / "twin.png").write_bytes((raw / "a" / "001.png").read_bytes())
    Image.new("RGB", (4, 40)).save(raw / "b" / "slit.png")
    run = pack(sources=[{"path": str(raw)}], max_failed_share=0.5, samples_per_shard=4)
    reasons = {key: row["reason"] for key, row in run.index.items() if row["status"] == "rejected"}
    assert reasons == {
        "raw_a-bad": "truncated or damaged",
        "raw_a-gone": "unreadable: No such file or directory",
        "raw_b-slit": "smaller than 8 px",
        "raw_b-twin": "duplicate of raw_a-001",
    }
    failed = sum((Counter(Sidecar.read(sidecar_path(tar)).failed) for tar in tars(run)), Counter())
    assert failed == {"truncated or damaged": 1, "unreadable": 1, "smaller than 8 px": 1, "duplicate": 1}
    assert [shard.samples for shard in run.manifest.shards] == [4, 4, 4]
    assert run.manifest.info["num_rejected"] == 4
    assert run.manifest.info["class_counts"] == {"a": 6, "b": 6}


def test_duplicates_do_not_count_as_failures(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", 4)
    shutil.copy(raw / "000.png", raw / "copy.png")
    assert pack(sources=[{"path": str(raw)}], max_failed_share=0).manifest.num_samples == 4


def test_max_samples_draws_from_everything(pack: Pack, make_images: MakeImages) -> None:
    run = pack(sources=[{"path": str(make_images("raw", 30))}], max_samples=12)
    assert (run.manifest.num_samples, run.manifest.info["num_unused"]) == (12, 18)
    assert sorted(run.samples)[-1] > "raw_011"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "c"], "unknown class folder 'b'; 'classes' expects a, c"),
        (["b", "a", "z"], "empty class 'z'"),
    ],
)
def test_folders_that_do_not_fit_the_classes_are_named(
    pack: Pack, make_images: MakeImages, classes: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pack(sources=[{"path": str(make_images("raw", {"a": 2, "b": 2}))}], classes=classes)


def test_classes_give_the_label_order(pack: Pack, make_images: MakeImages) -> None:
    run = pack(sources=[{"path": str(make_images("raw", {"a": 2, "b": 2}))}], classes=["b", "a"])
    assert run.manifest.classes == ["b", "a"]
    assert {meta["label"]: meta["class_index"] for _, meta in run.samples.values()} == {"b": 0, "a": 1}
    with pytest.raises(DataError, match="no class folders, but 'classes' expects"):
        pack(sources=[{"path": str(make_images("flat", 3))}], classes=["b", "a"])


def test_a_class_of_broken_images_is_an_empty_class(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {"a": 2, "b": 1})
    (raw / "b" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="empty class 'b': no usable image"):
        pack(sources=[{"path": str(raw)}], max_failed_share=0.5)


def test_two_sources_of_one_name_are_refused(pack: Pack, make_images: MakeImages) -> None:
    sources = [{"path": str(make_images(f"{parent}/train", 2))} for parent in ("x", "y")]
    with pytest.raises(DataError, match="2 sources are named 'train'"):
        pack(sources=sources)


def test_resize_re_encodes_every_image_and_scales_mpp(pack: Pack, make_images: MakeImages) -> None:
    run = pack(sources=[{"path": str(make_images("raw", 3)), "mpp": 0.5}], resize_px=8)
    for image, meta in run.samples.values():
        assert decode(image).pixels.shape == (8, 8, 3)
        assert (meta["width"], meta["height"], meta["mpp"]) == (8, 8, 1.0)
    assert run.manifest.fields["image"].shape == [8, 8, 3]


def test_the_field_has_a_fixed_shape_only_if_all_images_have_it(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", 3)
    assert pack("same", sources=[{"path": str(raw)}]).manifest.fields["image"].shape == [16, 16, 3]
    Image.new("RGB", (20, 16)).save(raw / "wide.png")
    assert pack("mixed", sources=[{"path": str(raw)}]).manifest.fields["image"].shape == [None, None, 3]


def test_tiles_without_tissue_are_background(pack: Pack, make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", 0)
    pixels = np.full((32, 64, 3), 240, np.uint8)
    pixels[:, :32] = np.clip(np.array([190, 100, 170]) + noise(32) // 16, 0, 255)
    Image.fromarray(pixels).save(raw / "crop.png")
    source = {"path": str(raw / "crop.png"), "tile_images": True, "tile_px": 16}
    run = pack(sources=[{**source, "min_tissue": 0.5}])
    statuses = {(row["x"], row["y"]): row["status"] for row in run.index.values()}
    assert statuses == {(x, y): "ok" if x < 32 else "background" for x in (0, 16, 32, 48) for y in (0, 16)}
    assert run.manifest.info["num_background"] == 4
    for image, meta in run.samples.values():
        tile = pixels[meta["y"] : meta["y"] + 16, meta["x"] : meta["x"] + 16]
        np.testing.assert_array_equal(decode(image).pixels, tile)
    Image.new("RGB", (64, 64), (240, 240, 240)).save(raw / "crop.png")
    with pytest.raises(DataError, match=r"source 'crop': no tissue tile at all \(min_tissue 0.5\).*crop.png"):
        pack("white", sources=[{**source, "min_tissue": 0.5}])


def test_an_unreadable_slide_is_named_and_too_many_of_them_are_fatal(
    pack: Pack, make_images: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_images("raw", 0)
    (raw / "bad.svs").write_bytes(b"II*\0" + b"\0" * 50)
    Image.fromarray(noise(64)).save(raw / "good.tif")
    sources = [{"path": str(raw), "layout": "slide", "tile_px": 16}]
    with pytest.raises(DataError, match=r"1 of 2 slides cannot be used: bad.svs \(truncated or damaged\); that"):
        pack("few", sources=sources, max_failed_share=0.1)
    run = pack(sources=sources, max_failed_share=0.5)
    assert "warning: source 'raw': 1 of 2 slides cannot be used: bad.svs" in capsys.readouterr().out
    assert run.manifest.num_samples == 16
    (bad,) = [row for row in run.index.values() if row["status"] == "rejected"]
    assert (bad["path"], bad["reason"]) == ("bad.svs", "truncated or damaged")


def test_the_stages_load_no_torch() -> None:
    code = "import sys, hdtrain.stages.shard, hdtrain.stages.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


def test_the_command_prints_one_summary_line(make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", 9)
    (raw / "bad.png").write_bytes(b"")
    directory = prepare(tmp_path / "out", sources=[{"path": str(raw)}], max_failed_share=0.2, max_samples=5)
    command = [sys.executable, "-m", "hdtrain.stages", "shard", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("shard: 5 ok, 1 rejected (1 empty file), 4 unused, 1 shard, 0.0 MB, ")
    assert done.stdout.count("\n") == 1


def test_kather_classes_slides_and_positions(pack: Pack, real_data: Path) -> None:
    pattern = r"CRC-Prim-HE-(?P<slide>\d+).*_Row_(?P<y>\d+)_Col_(?P<x>\d+)"
    source = {"path": str(real_data / "kather2016_crc8" / "test"), "pattern": pattern, "mpp": 0.495}
    run = pack(sources=[source], split="test")
    assert run.manifest.num_samples == 469
    assert run.manifest.info["class_counts"]["08_EMPTY"] == 35
    assert {meta["slide"] for _, meta in run.samples.values()} == {"08", "09", "10"}
    for key, (image, meta) in run.samples.items():
        path = run.index[key]["path"]
        assert image == (real_data / "kather2016_crc8" / "test" / path).read_bytes()
        assert path.startswith(meta["label"])
        assert path.endswith(f"_Row_{meta['y']}_Col_{meta['x']}.png")


def test_eurosat_jpegs_pass_through(pack: Pack, real_data: Path) -> None:
    folder = real_data / "eurosat_rgb"
    run = pack(sources=[{"path": str(folder)}], sample={"mode": "equal", "per_class": 5})
    assert run.manifest.num_samples == 50
    assert all(image == (folder / run.index[key]["path"]).read_bytes() for key, (image, _) in run.samples.items())


def test_bbbc038_rgba_is_composed_over_white(pack: Pack, real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for path in sorted((real_data / "bbbc038_stained").glob("*.png"))[:5]:
        shutil.copyfile(path, tmp_path / "few" / path.name)
    run = pack(sources=[{"path": str(tmp_path / "few")}])
    assert run.manifest.num_samples == 5
    for key, (image, _) in run.samples.items():
        rgba = np.asarray(Image.open(tmp_path / "few" / run.index[key]["path"]))
        assert rgba.shape[-1] == 4
        np.testing.assert_array_equal(decode(image).pixels[rgba[..., 3] == 255], rgba[..., :3][rgba[..., 3] == 255])
    with pytest.raises(DataError, match=r"5 of 5 images cannot be used.*\(transparency\)"):
        pack("strict", sources=[{"path": str(tmp_path / "few")}], alpha="reject")


def test_real_slides_and_a_large_crop_become_tiles_with_tissue(pack: Pack, real_data: Path) -> None:
    wsi = real_data / "wsi"
    slide = {"path": str(wsi / "CMU-1-Small-Region.svs"), "tile_px": 256, "min_tissue": 0.5}
    crop = {"path": str(wsi / "OS-1_breast_1101px.png"), "tile_images": True, "tile_px": 256, "mpp": 0.25}
    run = pack(sources=[slide, crop])
    counts = Counter((row["source"], row["status"]) for row in run.index.values())
    assert counts[("OS-1_breast_1101px", "ok")] == 16
    assert counts[("CMU-1-Small-Region", "ok")] + counts[("CMU-1-Small-Region", "background")] == 8 * 11
    assert counts[("CMU-1-Small-Region", "background")] > 8
    assert {meta["mpp"] for _, meta in run.samples.values()} == {0.499, 0.25}
    assert run.manifest.fields["image"].shape == [256, 256, 3]
