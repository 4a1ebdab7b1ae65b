"""The toy corpus: complete, reproducible, and its classes differ in structure and not in colour."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_laplace
from scipy.optimize import minimize

TOOLS = Path(__file__).parents[3] / "tools"
TINY = ("--unlabelled", "9", "--train", "7", "--test", "4", "--size-px", "32")
CLASSES = ["FAT", "GLAND", "LYM", "MUCUS", "STROMA", "TUMOR"]


def make(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "make_toy_corpus.py"), str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "tiny"
    result = make(out, *TINY, "--workers", "1")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "corpus"
    result = make(out, "--unlabelled", "1", "--train", "40", "--test", "20", "--workers", "2")
    assert result.returncode == 0, result.stderr
    return out


def test_folders_counts_and_formats(tiny: Path):
    record = json.loads((tiny / "corpus.json").read_text())
    assert record["classes"] == CLASSES == sorted(path.name for path in (tiny / "labelled/train").iterdir())
    for folder, count in record["counts"].items():
        assert len(list((tiny / folder).iterdir())) == count
    assert record["counts"]["unlabelled/source_b"] == 9
    assert record["counts"]["labelled/train/GLAND"] == 7
    for source, mode, suffix in (("a", "RGB", ".png"), ("b", "RGB", ".jpg"), ("c", "RGBA", ".png")):
        for path in (tiny / f"unlabelled/source_{source}").iterdir():
            image = Image.open(path)
            assert (image.mode, image.size, path.suffix) == (mode, (32, 32), suffix)
    assert Image.open(tiny / "real/immunohistochemistry.png").size == (512, 512)


def test_slides_never_cross_splits_or_sources(tiny: Path):
    folders = [*(tiny / "unlabelled").iterdir(), tiny / "labelled/train", tiny / "labelled/test"]
    slides = [{path.name.split("_")[0] for path in folder.rglob("slide*")} for folder in folders]
    assert {len(found) for found in slides} == {8, 6, 3}
    assert len(set.union(*slides)) == sum(len(found) for found in slides)


def test_no_image_twice(corpus: Path):
    found = list(digests(corpus / "labelled").values())
    assert len(set(found)) == len(found) == 6 * 60


def test_bytes_depend_on_the_seed_and_not_on_the_workers(tiny: Path, tmp_path: Path):
    assert make(tmp_path / "two", *TINY, "--workers", "2").returncode == 0
    assert digests(tmp_path / "two") == digests(tiny)
    assert make(tmp_path / "seed", *TINY, "--workers", "1", "--seed", "1").returncode == 0
    other, first = digests(tmp_path / "seed"), digests(tiny)
    assert other.keys() == first.keys()
    assert [name for name in first if other[name] == first[name]] == ["real/immunohistochemistry.png"]


def test_a_smaller_corpus_is_the_beginning_of_a_larger(tiny: Path, tmp_path: Path):
    small = ("--unlabelled", "2", "--train", "1", "--test", "1", "--size-px", "32", "--workers", "1")
    assert make(tmp_path / "small", *small).returncode == 0
    images = {name: digest for name, digest in digests(tmp_path / "small").items() if name != "corpus.json"}
    assert len(images) == 3 * 2 + 6 * 2 + 1
    assert images.items() <= digests(tiny).items()


def test_the_same_command_again_leaves_it_and_another_is_refused(tiny: Path):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    again = make(tiny, *TINY, "--workers", "2")
    assert again.returncode == 0
    assert "already there" in again.stdout
    refused = make(tiny, *TINY, "--seed", "5")
    assert refused.returncode == 2
    assert "'seed': 0" in refused.stderr
    assert "'seed': 5" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_what_a_killed_run_left_does_not_get_in_and_foreign_files_are_kept(tmp_path: Path):
    arguments = ("--unlabelled", "1", "--train", "1", "--test", "1", "--size-px", "16", "--workers", "1")
    leftover = tmp_path / ".out.partial/unlabelled/source_a"
    leftover.mkdir(parents=True)
    (leftover / "slide99_00000.png").write_bytes(b"half")
    assert make(tmp_path / "out", *arguments).returncode == 0
    assert len(digests(tmp_path / "out")) == 3 + 6 * 2 + 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    refused = make(tmp_path / "mine", *arguments)
    assert refused.returncode == 2
    assert "choose another" in refused.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_repainting_moves_the_palette_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from toy_corpus import stain

    rng = np.random.default_rng(0)
    palette = stain.random_palette(32 * 32, rng)
    haematoxylin, eosin = rng.random((32, 32)), rng.random((32, 32))
    painted = np.stack(stain.repaint(haematoxylin, eosin, palette), axis=-1).reshape(-1, 2)
    assert sorted(map(tuple, painted)) == sorted(map(tuple, palette))
    tone, drawn = painted @ [1, 0.6], (haematoxylin + 0.6 * eosin).ravel()
    assert np.corrcoef(np.argsort(np.argsort(tone)), np.argsort(np.argsort(drawn)))[0, 1] > 0.99


def labelled(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    paths = [path for name in CLASSES for path in sorted((root / "labelled" / split / name).iterdir())]
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return np.stack([np.asarray(Image.open(path)) for path in paths]), labels


def colour_features(images: np.ndarray) -> np.ndarray:
    """Hellinger-transformed joint histogram, 8×8×8 bins."""
    bins = (images.reshape(len(images), -1, 3) // 32).astype(int) @ [64, 8, 1]
    return np.sqrt(np.stack([np.bincount(row, minlength=512) for row in bins]) / bins.shape[1])


def structure_features(images: np.ndarray) -> np.ndarray:
    """Shape of the blob response at four scales, and how far gradients agree in direction over three."""
    rows = []
    for image in images:
        density = -np.log((image.mean(axis=-1) + 4) / 259)
        row = []
        for scale in (1, 2, 4, 8):
            blobs = gaussian_laplace(density, scale) * scale**2
            row += [blobs.std(), (blobs**3).mean() / blobs.std() ** 3, np.abs(blobs).mean() / blobs.std()]
        gy, gx = np.gradient(gaussian_filter(density, 1))
        for scale in (3, 8, 30):
            yy, xx, xy = (gaussian_filter(product, scale) for product in (gy * gy, gx * gx, gx * gy))
            row.append((np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9)).mean())
        rows.append(row)
    return np.array(rows)


def logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    mean, scale, onehot = train.mean(axis=0), train.std(), np.eye(6)[labels]
    train, test = ((np.c_[(part - mean) / scale, np.ones(len(part))]) for part in (train, test))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, 6)
        logits = train @ weights
        logits -= np.log(np.exp(logits - logits.max()).sum(axis=1, keepdims=True)) + logits.max()
        slope = train.T @ (np.exp(logits) - onehot) / len(train) + 0.01 * weights
        return 0.005 * flat @ flat - (onehot * logits).sum() / len(train), slope.ravel()

    found = minimize(loss, np.zeros(train.shape[1] * 6), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return (test @ found.x.reshape(-1, 6)).argmax(axis=1)


def nearest_neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    nearest = np.argsort(((test[:, None] - train) ** 2).sum(axis=-1), axis=1)[:, :7]
    return np.array([np.bincount(labels[row], minlength=6).argmax() for row in nearest])


def linear_discriminant(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    means = np.stack([train[labels == k].mean(axis=0) for k in range(6)])
    inverse = np.linalg.inv(np.cov((train - means[labels]).T))
    return (test @ inverse @ means.T - 0.5 * ((means @ inverse) * means).sum(axis=1)).argmax(axis=1)


def test_classes_show_in_structure_and_not_in_colour(corpus: Path):
    (train, labels), (test, truth) = labelled(corpus, "train"), labelled(corpus, "test")
    colours = colour_features(train), labels, colour_features(test)
    for classify in (logistic_regression, nearest_neighbours):
        assert (classify(*colours) == truth).mean() < 0.28, classify.__name__
    structure = structure_features(train), labels, structure_features(test)
    assert (linear_discriminant(*structure) == truth).mean() > 0.75


def test_the_colour_classifier_is_not_blind(corpus: Path):
    """Shifted by a few grey levels a class, the same images are told apart by colour."""
    (train, labels), (test, truth) = labelled(corpus, "train"), labelled(corpus, "test")
    tinted = [
        np.clip(images * (1 - 0.06 * which[:, None, None, None]), 0, 255).astype(np.uint8)
        for images, which in ((train, labels), (test, truth))
    ]
    features = [colour_features(images) for images in tinted]
    assert (logistic_regression(features[0], labels, features[1]) == truth).mean() > 0.6
