"""FD∞ of a set that lies on disk, and draws from it: whatever the shards, and as computed in memory."""

import numpy as np
import pytest

from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.subsets import drawn, frechet_infinity
from hdtrain.features.store import FeatureSet, Piece
from hdtrain.formats.npy import write_npy

DIM = 6


def gaussian(n, seed, shift=0.0):
    mixing = np.random.default_rng(7).standard_normal((DIM, DIM))
    return (np.random.default_rng(seed).standard_normal((n, DIM)) @ mixing + shift).astype(np.float32)


def on_disk(folder, features, keys, cuts):
    """The features as shards that end at `cuts`."""
    pieces, paths = [], []
    parts = zip(np.split(features, cuts), np.split(keys, cuts), strict=True)
    for number, (rows, names) in enumerate(parts):
        paths.append(folder / f"{number}.npy")
        write_npy(paths[-1], rows)
        listing = names.tolist(), np.zeros(len(names), np.int64)
        pieces.append(Piece(str(number), len(rows), lambda *_: [], lambda listing=listing: listing))
    return FeatureSet(tuple(pieces), tuple(paths), DIM)


@pytest.fixture(scope="module")
def keys():
    return np.array([f"k{i:04d}" for i in np.random.default_rng(1).permutation(400)])


def test_it_is_the_line_over_nested_subsets_computed_in_memory(tmp_path, keys):
    features, reference = gaussian(400, 2), Moments.of(gaussian(3000, 3))
    found = frechet_infinity(on_disk(tmp_path, features, keys, [150, 151, 390]), keys, reference, seed=5)
    order = np.argsort(keys)[np.random.default_rng(5).permutation(400)]
    counts = np.linspace(200, 400, 15).astype(int)
    distances = [frechet_distance(Moments.of(features[order[:count]]), reference) for count in counts]
    assert found == pytest.approx(np.polyfit(1 / counts, distances, 1)[1], rel=1e-9)
    assert found != pytest.approx(distances[-1], rel=1e-3)


def test_the_same_images_in_other_shards_give_the_same_line(tmp_path, keys):
    features, reference = gaussian(400, 2), Moments.of(gaussian(3000, 3))
    one = frechet_infinity(on_disk(tmp_path / "a", features, keys, [100, 300]), keys, reference, 5)
    order = np.random.default_rng(9).permutation(400)
    other = frechet_infinity(on_disk(tmp_path / "b", features[order], keys[order], [17]), keys[order], reference, 5)
    assert other == pytest.approx(one, rel=1e-9)


def test_it_removes_most_of_the_bias_of_a_small_set(tmp_path, keys):
    reference, seeds = Moments.of(gaussian(50_000, 3)), range(20, 30)
    sets = [on_disk(tmp_path / str(seed), gaussian(400, seed), keys, [200]) for seed in seeds]
    plain = np.mean([frechet_distance(Moments.of(np.concatenate(list(s.blocks()))), reference) for s in sets])
    assert abs(np.mean([frechet_infinity(s, keys, reference, 0) for s in sets])) < 0.5 * plain


def test_a_draw_is_of_all_where_there_are_few_and_repeatable_and_ordered_where_there_are_many():
    rows = np.arange(100, 400, 2)
    assert drawn(rows, 0, limit=150) is rows
    some = drawn(rows, 3, limit=40)
    assert len(some) == len(set(some.tolist()) & set(rows.tolist())) == 40
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, drawn(rows, 3, limit=40))
    assert some.tolist() != drawn(rows, 4, limit=40).tolist()
