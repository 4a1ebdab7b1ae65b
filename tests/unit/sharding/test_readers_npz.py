"""Images in `.npz` files, as ADM's sample and reference batches have them."""

from pathlib import Path

import numpy as np
import pytest
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError

SAVE = {"stored": np.savez, "compressed": np.savez_compressed}


def batch(count: int = 70, size_px: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


@pytest.mark.parametrize("save", SAVE)
def test_a_batch_is_read_in_order_whatever_the_units(tmp_path: Path, save: str) -> None:
    images = batch()
    SAVE[save](tmp_path / "samples.npz", images)
    inputs = listed(tmp_path / "samples.npz")
    assert [outcome(item) for item in inputs] == [image.tobytes() for image in images]
    assert (inputs[69].path, inputs[69].stem) == ("samples.npz[69]", "000069")
    for unit_inputs in (1, 33, 64):
        assert described(listed(tmp_path / "samples.npz", unit_inputs)) == described(inputs)


def test_units_of_a_compressed_array_may_be_read_in_any_order_by_one_reader(tmp_path: Path) -> None:
    images = batch(9)
    np.savez_compressed(tmp_path / "samples.npz", images)
    reader = opened(tmp_path / "samples.npz")
    reader.unit_inputs = 2  # type: ignore[attr-defined]
    units = list(reader.units())
    for index in (3, 1, 2, 4, 0, 0):
        found = [outcome(item) for item in reader.read(units[index])]
        assert found == [image.tobytes() for image in images[2 * index : 2 * index + 2]]


def test_images_are_found_beside_statistics_and_labels(tmp_path: Path) -> None:
    images = batch(3)
    np.savez(tmp_path / "ref.npz", mu=np.zeros(4), sigma=np.eye(4), arr_0=images, arr_1=np.array([7, 0, 7]))
    np.savez(tmp_path / "named.npz", mu=np.zeros(4), pictures=images)
    for name in ("ref", "named"):
        inputs = listed(tmp_path / f"{name}.npz")
        assert [outcome(item) for item in inputs] == [image.tobytes() for image in images]
        assert {item.label for item in inputs} == {None}
    labelled = listed(tmp_path / "ref.npz", columns={"label": "arr_1"})
    assert [item.label for item in labelled] == ["7", "0", "7"]


def test_a_folder_of_batches_is_read_file_by_file(tmp_path: Path) -> None:
    images = batch(5)
    np.savez(tmp_path / "b.npz", images[3:])
    np.savez(tmp_path / "a.npz", images[:3])
    inputs = listed(tmp_path)
    assert [outcome(item) for item in inputs] == [image.tobytes() for image in images]
    assert inputs[3].stem == "b-000000"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(4)}, r"no array of images; expected 'arr_0' .*, found 'mu' float64 \(4,\)"),
        ({"arr_0": np.zeros((3, 16, 16))}, r"'arr_0' float64 \(3, 16, 16\); expected numbers of shape"),
        ({"arr_0": np.array(["x"])}, r"'arr_0' <U1 \(1,\); expected numbers of shape"),
    ],
)
def test_a_file_without_images_is_refused_with_what_it_holds(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "x.npz")


def test_a_column_of_another_length_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", batch(3), np.arange(2))
    with pytest.raises(DataError, match=r"array 'arr_1' of shape \(2,\) as the label; expected one value for each"):
        listed(tmp_path / "x.npz", columns={"label": "arr_1"})


def test_a_truncated_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", batch())
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-300])
    with pytest.raises(DataError, match=r"cut.npz: not an .npz of arrays, or truncated"):
        listed(tmp_path / "cut.npz")
    (tmp_path / "bad.npz").write_bytes(whole[:20_000] + bytes(64) + whole[20_064:])
    with pytest.raises(DataError, match=r"bad.npz: damaged or truncated: images \d+ to \d+ of 'arr_0' cannot be read"):
        listed(tmp_path / "bad.npz")
