"""Splits, duplicates and expected counts through the stage, and leaks between data sets."""

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sharding_helpers import Run, noise, prepare

from hdtrain.errors import DataError, HdtrainError
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.stages import verify
from hdtrain.stages.base import StageContext

MakeImages = Callable[..., Path]
Pack = Callable[..., Run]
PATTERN = r"(?P<patient>P\d+)_(?P<slide>S\d+)"


def patients(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """`counts` images of each patient, two slides a patient, in class folders a and b."""
    number = seed * 10_000
    for patient, count in counts.items():
        for index in range(count):
            path = folder / "ab"[index % 2] / f"{patient}_S{patient[1:]}{index // 2 % 2}_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(16, seed=number)).save(path)
            number += 1
    return folder


def check(tmp_path: Path, images: Path, others: list[Path]) -> str:
    directory = prepare(tmp_path / "checked", images=str(images), disjoint_from=[str(path) for path in others])
    config, context = StageContext.open("verify", directory)
    try:
        verify.run(config, context)  # type: ignore[arg-type]
    except HdtrainError as error:
        return str(error)
    return ""


@pytest.fixture
def split(pack: Pack, tmp_path: Path) -> Path:
    raw = patients(tmp_path / "raw", {f"P{number}": 6 + number % 3 for number in range(10, 22)})
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    pack("out", sources=[{"path": str(raw), "pattern": PATTERN}], splits={"shares": shares}, samples_per_shard=20)
    return tmp_path / "out"


def test_every_split_is_a_data_set_of_whole_patients(split: Path, tmp_path: Path) -> None:
    assert read_manifest(split).kind == "splits"
    owner: dict[str, str] = {}
    keys: list[str] = []
    for name in ("train", "val", "test"):
        run = Run(split / name)
        assert run.manifest.split == name
        assert min(run.manifest.info["class_counts"].values()) > 0
        for key, (_, meta) in run.samples.items():
            assert owner.setdefault(meta["patient"], name) == name
            assert meta["split"] == name
            keys.append(key)
        assert set(run.index) == set(run.samples)
    assert len(owner) == 12
    whole = pq.read_table(RunDir(split).index).to_pylist()
    assert sorted(keys) == sorted(row["key"] for row in whole)
    assert Counter(row["split"] for row in whole) == {"train": 42, "val": 21, "test": 21}
    for name, others in (("train", ["val", "test"]), ("test", ["val"])):
        assert check(tmp_path, split / name, [split / other for other in others]) == ""


def test_few_shot_subsets_are_drawn_from_one_split_and_nested(pack: Pack, tmp_path: Path) -> None:
    raw = patients(tmp_path / "raw", {f"P{number}": 8 for number in range(10, 30)})
    common = {"sources": [{"path": str(raw), "pattern": PATTERN}], "splits": {"shares": {"train": 0.5, "test": 0.5}}}
    shots = {}
    for count in (1, 5):
        sample = {"mode": "equal", "per_class": count, "splits": ["train"]}
        pack(f"shot-{count}", **common, sample=sample)
        assert Run(tmp_path / f"shot-{count}" / "train").manifest.info["class_counts"] == {"a": count, "b": count}
        assert Run(tmp_path / f"shot-{count}" / "test").manifest.num_samples == 80
        shots[count] = set(Run(tmp_path / f"shot-{count}" / "train").samples)
    assert shots[1] < shots[5]


def test_the_same_patient_in_sources_of_two_splits_is_named(pack: Pack, tmp_path: Path) -> None:
    train = patients(tmp_path / "train", {"P10": 4, "P11": 4})
    test = patients(tmp_path / "test", {"P11": 4, "P12": 4}, seed=1)
    sources = [{"path": str(path), "pattern": PATTERN, "split": path.name} for path in (train, test)]
    with pytest.raises(DataError, match="leak between splits: patient 'P11' is in 'train' and 'test'"):
        pack("out", sources=sources)
    assert not (tmp_path / "out" / "shards").exists()


def test_leaks_between_data_sets_are_found_and_named(pack: Pack, tmp_path: Path) -> None:
    train = pack("train", sources=[{"path": str(patients(tmp_path / "a", {"P10": 4, "P11": 4})), "pattern": PATTERN}])
    other = patients(tmp_path / "b", {"P11": 2, "P12": 2}, seed=1)
    turned = np.rot90(np.asarray(Image.open(next((tmp_path / "a").rglob("P10_*.png")))))
    Image.fromarray(np.ascontiguousarray(turned)).save(other / "a" / "P13_S130_9.png")
    test = pack("test", sources=[{"path": str(other), "pattern": PATTERN}], split="test")
    message = check(tmp_path, test.path, [train.path])
    assert "leak: 1 patient of" in message
    assert ": P11" in message
    assert "1 image (turned or mirrored copies too) of" in message
    assert "b_a-P13_S130_9" in message
    assert "3 problems" in message  # and the slide


def turned_copies(folder: Path) -> Path:
    """Three images, one of them again as itself, once turned and once mirrored."""
    folder.mkdir()
    for number in range(3):
        Image.fromarray(noise(16, seed=number)).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "a-same-bytes.png")
    Image.fromarray(noise(16, seed=0)).save(folder / "b-same-pixels.png", compress_level=0)
    Image.fromarray(np.ascontiguousarray(np.rot90(noise(16, seed=0)))).save(folder / "c-turned.png")
    Image.fromarray(np.ascontiguousarray(noise(16, seed=0)[:, ::-1])).save(folder / "d-mirrored.png")
    return folder


def test_turned_and_mirrored_copies_are_dropped_and_the_index_says_of_what(pack: Pack, tmp_path: Path) -> None:
    run = pack(sources=[{"path": str(turned_copies(tmp_path / "raw"))}])
    assert set(run.samples) == {"raw_0", "raw_1", "raw_2"}
    assert {key: row["reason"] for key, row in run.index.items() if row["status"] == "rejected"} == {
        "raw_a-same-bytes": "duplicate of raw_0",
        "raw_b-same-pixels": "duplicate (same pixels) of raw_0",
        "raw_c-turned": "duplicate (turned or mirrored) of raw_0",
        "raw_d-mirrored": "duplicate (turned or mirrored) of raw_0",
    }
    assert len({row["pixels_id"] for row in run.index.values()}) == 3


def test_copies_can_be_kept_and_are_listed_all_the_same(pack: Pack, tmp_path: Path) -> None:
    run = pack(sources=[{"path": str(turned_copies(tmp_path / "raw")), "expect": 7}], duplicates="keep")
    assert len(run.samples) == 7
    assert Counter(row["duplicate_of"] for row in run.index.values()) == {None: 3, "raw_0": 4}
    assert run.manifest.info["num_duplicates"] == 4


def test_a_kept_copy_in_another_split_is_a_leak(pack: Pack, tmp_path: Path) -> None:
    train, test = turned_copies(tmp_path / "train"), tmp_path / "test"
    test.mkdir()
    shutil.copy(train / "c-turned.png", test / "x.png")
    sources = [{"path": str(path), "split": path.name} for path in (train, test)]
    with pytest.raises(DataError, match="1 duplicates lie in another split than their original, first test_x"):
        pack("kept", sources=sources, duplicates="keep")
    with pytest.raises(DataError, match="split 'test' is empty"):
        pack("dropped", sources=sources)


def test_a_recompressed_copy_is_a_near_duplicate(pack: Pack, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(data.immunohistochemistry())
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, place in enumerate([(0, 0), (200, 40), (300, 300)]):
        image.crop((*place, place[0] + 128, place[1] + 128)).save(raw / f"{number}.png")
    image.crop((200, 40, 328, 168)).transpose(Image.Transpose.ROTATE_90).save(raw / "z.jpg", quality=50)
    assert pack("exact", sources=[{"path": str(raw)}]).manifest.num_samples == 4
    run = pack("near", sources=[{"path": str(raw)}], near_duplicates={"max_distance": 4})
    assert run.index["raw_z"]["reason"] == "near duplicate of raw_1"
    assert run.manifest.info["rejected"] == {"near duplicate": 1}


def test_a_source_that_is_short_is_named_with_what_is_missing(pack: Pack, make_images: MakeImages) -> None:
    full, short = make_images("full", 5), make_images("short", 7, seed=1)
    (short / "003.png").write_bytes(b"")
    sources = [{"path": str(full), "expect": 5}, {"path": str(short), "expect": 1200}]
    with pytest.raises(DataError) as caught:
        pack(sources=sources, max_failed_share=0.5)
    assert "source 'short': 6 images, 1 more cannot be used, expected 1,200: 1,194 short" in str(caught.value)
    assert "full" not in str(caught.value)
    with pytest.raises(DataError, match="5 images, expected 2: 3 too many"):
        pack(sources=[{"path": str(full), "expect": 2}])


def test_names_that_differ_only_in_what_a_key_cannot_hold_get_a_hash(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", 1)
    Image.fromarray(noise(seed=8)).save(raw / "a b.png")
    Image.fromarray(noise(seed=9)).save(raw / "a-b.png")
    run = pack(sources=[{"path": str(raw)}])
    keys = sorted(run.samples)
    assert keys[0] == "raw_000"
    assert all(key.startswith("raw_a-b-") and len(key) == len("raw_a-b-") + 12 for key in keys[1:])
    assert set(run.index) == set(keys)


def test_format_jpg_encodes_what_is_no_jpeg_and_passes_jpegs_through(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", 2)
    Image.fromarray(noise(32, seed=4)).save(raw / "x.jpg", quality=30)
    run = pack(sources=[{"path": str(raw)}], format="jpg", jpeg_quality=98)
    from sharding.images import decode

    for key, (image, _) in run.samples.items():
        decoded = decode(image)
        assert decoded.ext == "jpg"
        if key == "raw_x":
            assert image == (raw / "x.jpg").read_bytes()
        else:
            stream = io.BytesIO()
            Image.open(raw / f"{key[4:]}.png").save(stream, "JPEG", quality=98, subsampling=0)
            assert image == stream.getvalue()


def test_a_file_name_that_is_no_utf8_is_packed(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", 1)
    shutil.copy(raw / "000.png", os.fsencode(raw) + b"/gr\xf6sse.png")
    Image.fromarray(noise(seed=3)).save(os.fsencode(raw) + b"/gr\xf6sse.png", "PNG")
    run = pack(sources=[{"path": str(raw)}])
    assert set(run.samples) == {"raw_000", "raw_gr-xf6sse"}
    assert run.index["raw_gr-xf6sse"]["path"] == r"gr\xf6sse.png"


def test_a_pattern_that_misses_some_names_is_a_warning(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = patients(tmp_path / "raw", {"P10": 4, "P11": 4})
    Image.fromarray(noise(seed=77)).save(raw / "a" / "odd.png")
    pack(sources=[{"path": str(raw), "pattern": PATTERN}])
    said = capsys.readouterr().out
    assert "warning: source 'raw': 'pattern' finds no patient in 1 of 9 names, such as a/odd.png" in said


def test_the_classes_are_printed_and_one_that_a_split_lacks_is_a_warning(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = patients(tmp_path / "raw", {f"P{number}": 4 for number in range(10, 20)})
    (raw / "c").mkdir()
    for number in range(6):  # a class of one patient alone
        Image.fromarray(noise(seed=500 + number)).save(raw / "c" / f"P30_S300_{number}.png")
    pack(sources=[{"path": str(raw), "pattern": PATTERN}], splits={"shares": {"train": 0.5, "test": 0.5}})
    said = capsys.readouterr().out
    assert said.count("3 classes: a ") == 2
    assert said.count("has no image of c") == 1


def test_numbers_as_classes_are_in_the_order_of_numbers(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {str(number): 1 for number in (10, 2, 0, 1, 11)})
    run = pack(sources=[{"path": str(raw), "layout": "class-folders"}])
    assert run.manifest.classes == ["0", "1", "2", "10", "11"]


def test_a_link_that_leads_nowhere_or_in_a_circle_is_named(pack: Pack, make_images: MakeImages, cli) -> None:  # type: ignore[no-untyped-def]
    raw = make_images("raw", {"a": 2, "b": 2})
    (raw / "c").symlink_to(raw / "unmounted")
    with pytest.raises(DataError, match="raw/c: a link that leads nowhere"):
        pack("one", sources=[{"path": str(raw)}])
    (raw / "c").unlink()
    (raw / "a" / "loop").symlink_to(raw)
    done = cli("shard", "sources=[{path: raw}]", "--out", "two", code=2)
    assert "a link to a folder that holds it" in done.stderr


def test_a_parquet_file_without_rows_has_no_images(pack: Pack, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.binary())])
    pq.write_table(pa.Table.from_pylist([], schema=schema), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty.parquet: no images"):
        pack(sources=[{"path": str(tmp_path / "empty.parquet")}])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sample": {"mode": "equal", "per_class": 1}, "max_samples": 3}, "give one of them"),
        ({"splits": {"shares": {"shards": 0.5, "logs": 0.5}}}, "cannot be named logs, shards"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], problem: str) -> None:
    from hdtrain.config.shards import ShardConfig

    with pytest.raises(ValueError, match=problem):
        ShardConfig.model_validate({"sources": [{"path": "a"}], **changes})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"target_mpp": 0.5}, "target_mpp resamples slides"),
        ({"columns": {"label": "type"}}, "columns.label means nothing to folders"),
    ],
)
def test_keys_that_a_layout_has_no_use_for_are_refused(
    pack: Pack, make_images: MakeImages, source: dict[str, object], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        pack(sources=[{"path": str(make_images("raw", 3)), **source}])
