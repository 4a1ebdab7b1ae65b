from pathlib import Path

import numpy as np
import pytest
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError

TYPES = np.array(["Breast", "Colon", "Bile-duct"])


def fold(root: Path, number: int, count: int) -> np.ndarray:
    """`Fold k` as it is published: float64 images, types, masks."""
    folder = root / f"Fold {number}" / "images" / f"fold{number}"
    folder.mkdir(parents=True)
    images = np.random.default_rng(number).integers(0, 256, (count, 32, 32, 3)).astype(np.float64)
    np.save(folder / "images.npy", images)
    np.save(folder / "types.npy", TYPES[np.arange(count) % 3])
    masks = root / f"Fold {number}" / "masks" / f"fold{number}"
    masks.mkdir(parents=True)
    np.save(masks / "masks.npy", np.zeros((count, 32, 32, 6)))
    return images


def test_the_published_folds_are_recognised_and_read_in_order(tmp_path: Path) -> None:
    expected = np.concatenate([fold(tmp_path, number, count) for number, count in ((1, 70), (2, 5), (3, 6))])
    inputs = listed(tmp_path)
    assert [outcome(item) for item in inputs] == [image.astype(np.uint8).tobytes() for image in expected]
    assert inputs[69].path == "Fold 1/images/fold1/images.npy[69]"
    assert inputs[69].stem == "Fold 1/images/fold1/images-000069"
    assert {item.label for item in inputs} == {None}
    for unit_inputs in (1, 4, 64):
        assert described(listed(tmp_path, unit_inputs)) == described(inputs)


def test_types_are_the_label_when_they_are_named(tmp_path: Path) -> None:
    fold(tmp_path, 1, 4)
    inputs = listed(tmp_path, columns={"label": "types"})
    assert [item.label for item in inputs] == ["Breast", "Colon", "Bile-duct", "Breast"]


def test_a_single_array_is_a_source(tmp_path: Path) -> None:
    images = fold(tmp_path, 1, 3).astype(np.uint8)
    np.save(tmp_path / "tiles.npy", images)
    inputs = listed(tmp_path / "tiles.npy")
    assert [(item.path, item.stem) for item in inputs][2] == ("tiles.npy[2]", "000002")
    assert [outcome(item) for item in inputs] == [image.tobytes() for image in images]


def test_values_that_are_no_bytes_are_refused_image_by_image(tmp_path: Path) -> None:
    images = np.full((5, 16, 16, 3), 7.0)
    images[1] /= 14
    images[2, 3, 3, 1] = 255.5
    images[3, 3, 3, 1] = -1
    images[4, 3, 3, 1] = np.inf
    np.save(tmp_path / "images.npy", images)
    assert [outcome(item) for item in listed(tmp_path)] == [
        bytes([7]) * 16 * 16 * 3,
        "refused: not whole numbers in 0..255: 0.5 to 0.5",
        "refused: not whole numbers in 0..255: 7 to 255.5",
        "refused: not whole numbers in 0..255: -1 to 7",
        "refused: not whole numbers in 0..255: 7 to inf",
    ]


def test_types_of_another_length_are_an_error(tmp_path: Path) -> None:
    fold(tmp_path, 1, 4)
    np.save(tmp_path / "Fold 1" / "images" / "fold1" / "types.npy", TYPES)
    with pytest.raises(DataError, match=r"types\.npy: shape \(3,\) as the label; expected one value .* 4 images"):
        listed(tmp_path, columns={"label": "types"})
    assert len(listed(tmp_path)) == 4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((32, 32, 3)), r"float64 of shape \(32, 32, 3\); expected numbers of shape \(images, height"),
        (np.zeros((4, 3, 32, 32)), r"of shape \(4, 3, 32, 32\); expected"),
        (np.full((2, 8, 8, 3), "a"), "<U1 of shape"),
        (np.full((2, 8, 8, 3), None), "not an array that can be mapped"),
    ],
)
def test_an_array_that_holds_no_images_is_an_error(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "images.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_a_truncated_array_and_a_missing_column_are_named(tmp_path: Path) -> None:
    fold(tmp_path, 1, 4)
    with pytest.raises(DataError, match=r"tissue\.npy: no such file, but 'columns' names it"):
        listed(tmp_path, columns={"slide": "tissue"})
    file = tmp_path / "Fold 1" / "images" / "fold1" / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images\.npy: not an array that can be mapped, or truncated"):
        listed(tmp_path)


def test_a_unit_knows_when_its_images_or_its_types_change(tmp_path: Path) -> None:
    fold(tmp_path, 1, 4)
    reader = opened(tmp_path, columns={"label": "types"})
    (unit,) = reader.units()
    before = reader.state(unit)
    np.save(tmp_path / "Fold 1" / "images" / "fold1" / "types.npy", TYPES[[0, 0, 0, 0]])
    assert reader.state(unit) != before
