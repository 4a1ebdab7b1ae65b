"""Copies are found, also turned and blurred ones, and real images of other slides are not called copies."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.spatial.distance import cdist

from hdtrain.config.training import SqueezenetEncoder
from hdtrain.evaluation.memorisation import (
    Thresholds,
    TrainingImages,
    nearest_features,
    nearest_pairs,
    nearest_training_images,
    relative_distance,
)
from hdtrain.evaluation.pixels import SYMMETRIES, nearest_pixels
from hdtrain.features.encoders import build_encoder
from hdtrain.features.neighbours import l2_normalise
from hdtrain.features.resize import resize_float

PX = 8


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, PX, PX, 3), np.uint8)


def _turned(image, symmetry):
    turns, mirrored = SYMMETRIES[symmetry]
    image = np.rot90(image, turns)
    return image[:, ::-1] if mirrored else image


@pytest.mark.parametrize(("query_block", "reference_block"), [(256, 1024), (3, 4)])
def test_pixel_distances_are_those_of_brute_force_in_any_block_size(monkeypatch, query_block, reference_block):
    monkeypatch.setattr("hdtrain.evaluation.pixels.QUERY_BLOCK", query_block)
    monkeypatch.setattr("hdtrain.evaluation.pixels.REFERENCE_BLOCK", reference_block)
    queries, references = _images(7), _images(11, 1)
    found = nearest_pixels(queries, references, 4)
    for query, distances, row, symmetry in zip(queries, found.distance, found.row, found.symmetry, strict=True):
        every = {
            (r, s): np.sqrt(((query.astype(float) - _turned(references[r], s)) ** 2).mean())
            for r, s in itertools.product(range(11), range(8))
        }
        nearest = sorted(min(every[r, s] for s in range(8)) for r in range(11))
        np.testing.assert_allclose(distances, nearest[:4], rtol=1e-12)
        assert every[row, symmetry] == min(every.values())


def test_every_symmetry_of_a_training_image_is_at_distance_zero():
    references = _images(5)
    queries = np.stack([_turned(references[3], symmetry) for symmetry in range(8)])
    found = nearest_pixels(queries, references, 1)
    assert found.distance[:, 0].tolist() == [0.0] * 8
    assert found.row.tolist() == [3] * 8
    assert found.symmetry.tolist() == list(range(8))


def test_of_equal_images_the_first_is_named_and_an_image_is_not_its_own_neighbour():
    images = np.concatenate([_images(4), _images(4)])
    assert nearest_pixels(images[:4], images, 1).row.tolist() == [0, 1, 2, 3]
    assert nearest_pixels(images, images, 1, np.arange(8)).row.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("block", [5, 1024])
def test_feature_distances_agree_with_scipy(monkeypatch, block):
    monkeypatch.setattr("hdtrain.evaluation.memorisation.BLOCK", block)
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(12, 6)), rng.normal(size=(20, 6))
    expected = cdist(l2_normalise(queries), l2_normalise(references))
    distances, rows = nearest_features(queries, lambda: np.split(references, [7, 7, 15]), 3)
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], rtol=1e-9)
    assert rows.tolist() == expected.argmin(axis=1).tolist()
    np.testing.assert_allclose(relative_distance(distances), distances[:, 0] / distances[:, 1:].mean(axis=1))


def test_an_image_like_many_others_was_not_copied_from_one():
    assert relative_distance(np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0]])).tolist() == [1, 0, 1]


def test_pairs_are_taken_evenly_over_the_classes_the_nearest_first():
    relative, labels = np.linspace(1, 0, 220), np.arange(220) % 4
    rows = nearest_pairs(relative, labels, 8)
    assert sorted(labels[rows].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows.tolist() == list(range(219, 211, -1))


def _seen(images, encoder):
    squares = np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in images])
    small = resize_float(torch.from_numpy(squares), 32).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return {"features": encoder.embed(squares).numpy(), "pixels": small}


@pytest.mark.needs_data
def test_blurred_turned_copies_of_real_patches_are_flagged_and_other_slides_are_not(real_data):
    """Features see nothing of it; a plain pixel distance would not either, since smooth images lie nearer by nature."""
    weights = real_data / "weights" / "squeezenet_v1.1_notop_oihw.npz"
    encoder = build_encoder(SqueezenetEncoder(kind="squeezenet", weights=weights))
    root = real_data / "kather2016_crc8"

    def read(split, count):
        folders = sorted(path for path in (root / split).iterdir() if path.is_dir())
        paths = [path for folder in folders for path in sorted(folder.iterdir())[:: 35 // count][:count]]
        return [Image.open(path).convert("RGB") for path in paths]

    originals = read("train", 12)
    copies = [im.rotate(90 * (i % 4)).filter(ImageFilter.GaussianBlur(2)) for i, im in enumerate(originals[::3])]
    train = _seen(originals, encoder)
    known = TrainingImages(lambda: np.array_split(train["features"], 3), train["pixels"])
    train |= nearest_training_images(train, known, first_row=0)
    thresholds = Thresholds.of(train)
    copied = nearest_training_images(_seen(copies, encoder), known)
    real = nearest_training_images(_seen(read("test", 5), encoder), known)
    assert thresholds.flags(copied, "pixels").mean() > 0.8
    right = copied["pixels_row"] == np.arange(len(copies)) * 3
    assert right.mean() > 0.8
    assert thresholds.flags(copied, "features").mean() < 0.3
    assert thresholds.either(copied).mean() > 0.8
    assert thresholds.either(real).mean() < 0.1
    threshold = np.quantile(train["pixels_distance"], 0.01)
    assert (copied["pixels_distance"] < threshold).mean() < 0.4
