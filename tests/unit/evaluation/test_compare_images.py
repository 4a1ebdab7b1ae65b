"""Any images against any others: whatever they come as, the figures are those of the images."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_helpers import prepare
from tiny_chain import draw, signals_kept

from hdtrain.config.training import TimmEncoder
from hdtrain.evaluation.set_statistics import FILE
from hdtrain.features.encoders import build_encoder
from hdtrain.formats.comparison import Comparison
from hdtrain.formats.manifest import read_manifest
from hdtrain.stages.__main__ import run_stage

ENCODER = {"kind": "timm", "name": "test_resnet"}
FD, KD = "FD-timm-test_resnet-random", "KD-timm-test_resnet-random"
FIGURES = {FD, KD, "precision", "recall", "density", "coverage"}
PER_CLASS = 12


def write_folder(root: Path, seed: int, classes: tuple[str, ...] = ("dots", "stripes"), count: int = PER_CLASS) -> Path:
    """`count` images of 32 px a class; without classes, `count` right in the folder."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes or (".",)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(label % 2, rng)).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`real` and `fake`, each with two classes."""
    root = tmp_path_factory.mktemp("folders")
    for seed, name in enumerate(("real", "fake")):
        write_folder(root / name, seed)
    return root


def compare(out: Path, real: Path, fake: Path, code: int = 0, **config: object) -> Comparison | None:
    """Run the stage here; what it found, if it left with 0."""
    tree = {"real": str(real), "fake": str(fake), "encoder": ENCODER, "batch_size": 8, **config}
    with signals_kept():
        assert run_stage("evaluate-images", prepare("evaluate-images", out, tree)) == code
    return Comparison.read(out / "results.json") if code == 0 else None


@pytest.fixture(scope="module")
def measured(folders: Path) -> Path:
    """The run that the others are held against."""
    compare(folders / "run", folders / "real", folders / "fake")
    return folders / "run"


def packed_as(kind: str, folder: Path, at: Path) -> Path:
    """The images of a folder as a zip, a tar, or an array."""
    files = sorted(folder.rglob("*.png"))
    path = at / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(folder, "all")
    else:
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        np.savez(path, images) if kind == "npz" else np.save(path, images)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "npz", "npy"])
def test_the_same_images_have_the_same_figures_whatever_they_come_as(folders, measured, kind, tmp_path):
    whole = Comparison.read(measured / "results.json")
    found = compare(tmp_path / "out", folders / "real", packed_as(kind, folders / "fake", tmp_path))
    assert found.metrics == whole.metrics
    assert set(found.metrics) == FIGURES
    assert found.fake.num_images == 2 * PER_CLASS
    assert found.per_class == (whole.per_class if kind in ("zip", "tar") else {})
    assert any("fake has no classes" in warning for warning in found.warnings) == (kind in ("npz", "npy"))


def test_published_statistics_give_the_very_figures_of_the_images(folders, measured, tmp_path):
    whole = Comparison.read(measured / "results.json")
    one = compare(tmp_path / "one", measured / "real", folders / "fake")
    both = compare(tmp_path / "both", measured / "real", measured / "fake")
    for found in (one, both):
        assert (found.metrics, found.per_class) == (whole.metrics, whole.per_class)
    assert (one.real.kind, one.fake.kind) == ("statistics", "raw")
    assert one.real.identity == read_manifest(measured / "real").identity
    assert not (tmp_path / "both" / "features").exists()


def test_figures_of_a_class_are_those_of_its_folder_alone(folders, measured, tmp_path):
    whole = Comparison.read(measured / "results.json")
    alone = compare(tmp_path / "out", folders / "real" / "dots", folders / "fake" / "dots")
    of_class = whole.per_class["dots"]
    assert set(of_class) == FIGURES - {FD}
    for name, metric in of_class.items():
        assert metric.value == pytest.approx(alone.metrics[name].value, rel=1e-5, abs=1e-9)
    assert any(f"{FD} by class needs 192 images of the class in each set: left out for 2 of 2" in text
               for text in whole.left_out)  # fmt: skip


def test_mean_and_covariance_of_others_serve_for_the_frechet_distance_alone(folders, measured, tmp_path):
    whole = Comparison.read(measured / "results.json")
    with np.load(measured / "real" / FILE) as arrays:
        np.savez(tmp_path / "reference.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    found = compare(tmp_path / "out", tmp_path / "reference.npz", folders / "fake")
    assert found.metrics.keys() == {FD}
    assert found.metrics[FD].value == pytest.approx(whole.metrics[FD].value, rel=1e-6)
    assert found.real.num_images is None
    assert any("does not say which encoder" in warning for warning in found.warnings)


def test_statistics_of_another_encoder_or_altered_ones_are_refused(folders, measured, tmp_path, capsys):
    other = {"kind": "timm", "name": "test_vit"}
    compare(tmp_path / "a", measured / "real", folders / "fake", code=2, encoder=other)
    said = capsys.readouterr().err
    assert "these statistics do not fit this run: name timm-test_resnet-random, here timm-test_vit-random" in said
    compare(tmp_path / "b", measured / "real", folders / "fake", code=2, resolution=16)
    assert "image resolution images of their own size, here 16" in capsys.readouterr().err
    shutil.copytree(measured / "real", tmp_path / "altered")
    data = bytearray((tmp_path / "altered" / FILE).read_bytes())
    data[-2000] ^= 1
    (tmp_path / "altered" / FILE).write_bytes(data)
    compare(tmp_path / "c", tmp_path / "altered", folders / "fake", code=2)
    assert "missing or altered since it was published" in capsys.readouterr().err


def test_classes_that_differ_stop_before_anything_is_packed_unless_sets_are_compared_as_wholes(
    folders, tmp_path, capsys
):
    other = write_folder(tmp_path / "other", 2, ("dots", "strips"))
    compare(tmp_path / "out", folders / "real", other, code=2)
    assert "classes differ: real" in (said := capsys.readouterr().err)
    assert "has dots, stripes; fake" in said
    assert "per_class=false" in said
    assert not (tmp_path / "out" / "packed").exists()
    assert set(compare(tmp_path / "whole", folders / "real", other, per_class=False).metrics) == FIGURES


def test_what_needs_more_images_than_there_are_is_left_out_with_its_number(folders, tmp_path, capsys):
    found = compare(tmp_path / "out", folders / "real", write_folder(tmp_path / "few", 3, (), 5))
    assert set(found.metrics) == {FD}
    assert [text for text in found.left_out if "by class" not in text] == [
        "FDinf-timm-test_resnet-random needs 192 images a set, there are 5",
        f"{KD} needs 10 images a set, there are 5",
        "precision, recall, density, coverage needs 6 images a set, there are 5",
    ]
    assert f"left out: {KD} needs 10 images" in capsys.readouterr().out
    compare(tmp_path / "none", folders / "real", write_folder(tmp_path / "one", 3, (), 1), code=2)
    assert "fake: 1 image in" in capsys.readouterr().err


def test_kid_says_when_its_subsets_are_smaller(folders, measured, tmp_path):
    whole = Comparison.read(measured / "results.json")
    assert "100 subsets of 12 (half of the smaller set, not 1,000)" in whole.metrics[KD].method
    full = compare(tmp_path / "out", measured / "real", measured / "fake", kid_subset_size=20)
    assert "100 subsets of 20;" in full.metrics[KD].method


def test_fewer_features_are_kept_than_there_are_images_and_the_distance_is_of_all(folders, tmp_path):
    many = write_folder(tmp_path / "many", 5, (), 120)
    whole = compare(tmp_path / "whole", folders / "real", many)
    part = compare(tmp_path / "part", folders / "real", many, kept_features=100)
    assert part.metrics[FD] == whole.metrics[FD]
    assert (part.fake.num_images, part.fake.num_kept, part.metrics["precision"].n) == (120, 100, 100)
    again = compare(tmp_path / "again", tmp_path / "part" / "real", tmp_path / "part" / "fake", kept_features=100)
    assert again.metrics == part.metrics


@pytest.fixture
def broken(folders: Path, tmp_path: Path) -> Path:
    """A folder for each way in which images can be unusable."""
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "whole.npy", images)
    images[3, 2, 1, 0] = np.nan
    np.save(tmp_path / "nan.npy", images)
    (tmp_path / "empty").mkdir()
    archive = packed_as("zip", folders / "fake", tmp_path).read_bytes()
    (tmp_path / "half.zip").write_bytes(archive[: len(archive) // 2])
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(96), sigma=np.triu(np.ones((96, 96))))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan.npy", "nan.npy[3] (not whole numbers in 0..255: nan to nan)"),
        ("empty", "no images; expected files ending in"),
        ("half.zip", "half.zip: not a zip archive, or a truncated one"),
        ("small.npz", "mu (5,) and sigma (5, 5); the encoder's features want (96,)"),
        ("odd.npz", "sigma is no covariance"),
    ],
)
def test_images_that_cannot_be_used_are_one_message(folders, broken, name, message, capsys):
    compare(broken / "out", broken / name, folders / "fake", code=2)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (broken / "out" / "manifest.json").exists()


def test_a_share_of_unusable_images_may_be_allowed_and_is_counted(folders, broken):
    found = compare(broken / "out", broken / "nan.npy", broken / "whole.npy", max_failed_share=0.1)
    assert (found.real.num_images, found.real.num_rejected, found.fake.num_images) == (11, 1, 12)


def test_images_of_several_sizes_go_to_the_encoder_each_from_its_own(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (30, 40), (64, 64), (17, 90), (30, 40)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    (tmp_path / "mixed").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "mixed" / f"{number}.png")
    found = compare(tmp_path / "out", tmp_path / "mixed", write_folder(tmp_path / "other", 1, (), 5), batch_size=3)
    encoder = build_encoder(TimmEncoder(name="test_resnet"))
    expected = torch.cat([encoder.embed(image[None]) for image in images]).numpy()
    with np.load(tmp_path / "out" / "real" / FILE) as arrays:
        np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
    assert any("real several sizes, fake 32 × 32 px" in warning for warning in found.warnings)


def test_copies_of_real_images_are_found_and_named(folders, tmp_path):
    real = write_folder(tmp_path / "real", 7, (), 40)
    fake = write_folder(tmp_path / "fake", 8, (), 20)
    for number in (3, 11):
        shutil.copy(real / f"{number + 20:03d}.png", fake / f"{number:03d}.png")
    found = compare(tmp_path / "out", real, fake, memorisation=True)
    copies = {(pair.fake[-3:], pair.real[-3:]) for pair in found.nearest if pair.memorised}
    assert copies >= {("003", "023"), ("011", "031")}
    assert found.metrics["memorised_share"].value >= 0.1
    compare(tmp_path / "statistics", tmp_path / "out" / "real", fake, code=2, memorisation=True)


def test_images_that_are_added_later_cost_only_their_own_features(tmp_path, monkeypatch):
    monkeypatch.setattr("sharding.compared.SAMPLES_PER_SHARD", 4)
    monkeypatch.setattr("hdtrain.evaluation.moments.SHARDS_PER_GROUP", 2)
    real, fake = write_folder(tmp_path / "real", 1, (), 8), write_folder(tmp_path / "fake", 2, (), 16)
    shared = {"features": str(tmp_path / "features")}
    compare(tmp_path / "first", real, fake, **shared)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    for number in range(16, 20):
        Image.fromarray(draw(0, np.random.default_rng(number))).save(fake / f"{number:03d}.png")
    grown = compare(tmp_path / "second", tmp_path / "first" / "real", fake, **shared)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert {path: after[path] for path in before} == before
    assert len(after) - len(before) == 2  # one shard, and the sums of the group that it stands in
    assert grown.metrics == compare(tmp_path / "afresh", tmp_path / "first" / "real", fake).metrics
