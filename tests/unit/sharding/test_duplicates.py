import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sharding_helpers import noise

from sharding.duplicates import (
    SYMMETRIES,
    canonical_digest,
    first_of_equal,
    hashes_of_orientations,
    near_pairs,
    perceptual_hash,
    turn,
)

SIDES = st.integers(8, 13)


def orientations(pixels: np.ndarray) -> list[np.ndarray]:
    """By numpy's own rotations, not by `turn`."""
    quarter = [np.rot90(pixels, k) for k in range(4)]
    return [np.ascontiguousarray(view) for view in [*quarter, *(np.fliplr(view) for view in quarter)]]


@given(st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.uint8, (*shape, 3), elements=st.integers(0, 255))))
@settings(max_examples=60, deadline=None)
def test_all_orientations_have_one_digest(pixels: np.ndarray) -> None:
    assert len({canonical_digest(view)[0] for view in orientations(pixels)}) == 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((16, 16, 3), 7, np.uint8),
        np.tile(noise(8), (2, 2, 1)),
        np.concatenate([noise(8), noise(8)[::-1]]),
        np.concatenate([noise(9), noise(9)[:, ::-1]], axis=1),
    ],
)
def test_images_that_are_symmetric_themselves_have_one_digest_too(pixels: np.ndarray) -> None:
    assert len({canonical_digest(view)[0] for view in orientations(pixels)}) == 1


@given(arrays(np.uint8, (8, 9, 3), elements=st.integers(0, 3)), st.integers(0, 8 * 9 * 3 - 1))
@settings(max_examples=60, deadline=None)
def test_one_changed_value_changes_the_digest(pixels: np.ndarray, place: int) -> None:
    changed = pixels.copy()
    changed.reshape(-1)[place] ^= 1
    same = any(np.array_equal(changed, view) for view in orientations(pixels))
    assert (canonical_digest(changed)[0] == canonical_digest(pixels)[0]) == same


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    assert canonical_digest(np.zeros((8, 32, 3), np.uint8))[0] != canonical_digest(np.zeros((16, 16, 3), np.uint8))[0]


def test_turn_gives_every_orientation_once() -> None:
    pixels = noise(8)
    ours = {turn(pixels, symmetry).tobytes() for symmetry in range(SYMMETRIES)}
    assert ours == {view.tobytes() for view in orientations(pixels)}
    assert len(ours) == SYMMETRIES


def tissue(shift: int = 0) -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.immunohistochemistry()[40 + shift : 168 + shift, 60:188])


def test_hashes_of_orientations_are_the_hashes_of_the_turned_images() -> None:
    pixels = tissue()
    found = hashes_of_orientations(np.array([perceptual_hash(pixels)], np.uint64))[:, 0].tolist()
    assert found == [perceptual_hash(np.ascontiguousarray(turn(pixels, s))) for s in range(SYMMETRIES)]


def test_a_recompressed_turned_copy_is_near_and_other_tissue_is_not() -> None:
    import io

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(tissue()))).save(stream, "JPEG", quality=60)
    copy = np.asarray(Image.open(stream))
    others = [tissue(shift) for shift in (64, 128, 192, 256)]
    hashes = np.array([perceptual_hash(pixels) for pixels in [tissue(), *others, copy]], np.uint64)
    assert {(earlier, later) for earlier, later, _ in near_pairs(hashes, 4)} == {(0, 5)}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12), st.integers(0, 6), st.randoms())
@settings(max_examples=50, deadline=None)
def test_near_pairs_are_those_of_comparing_all_with_all(hashes: list[int], distance: int, random) -> None:  # type: ignore[no-untyped-def]
    for _ in range(4):  # relatives of the others, some bits away
        relative = random.choice(hashes)
        for bit in random.sample(range(64), random.randint(0, distance + 1)):
            relative ^= 1 << bit
        hashes.append(relative)
    table = np.array(hashes, np.uint64)
    expected = set()
    for later, views in enumerate(hashes_of_orientations(table).T.tolist()):
        for earlier in range(later):
            if min((view ^ hashes[earlier]).bit_count() for view in views) <= distance:
                expected.add((earlier, later))
    assert {(earlier, later) for earlier, later, _ in near_pairs(table, distance)} == expected


def test_the_first_of_equal_digests_is_found() -> None:
    digests = np.frombuffer(b"".join(bytes([i]) * 16 for i in (3, 1, 3, 2, 1, 3)), "V16")
    assert first_of_equal(digests).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_of_equal(digests[:0]).tolist() == []
