from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError
from sharding.inputs import make_key


def write(path: Path, **datasets: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as made:
        for name, data in datasets.items():
            made.create_dataset(name, data=data)
    return path


def images(count: int, seed: int = 0, size_px: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, channels), dtype=np.uint8)


@pytest.fixture
def pathology_gan(tmp_path: Path) -> Path:
    """The layout of `hdf5_vgh_nki_he`, small."""
    for number, (split, count) in enumerate((("train", 11), ("test", 4))):
        columns = {f"{split}_img": images(count, number), f"{split}_labels": np.arange(count) % 2}
        write(tmp_path / "vgh_nki" / f"hdf5_vgh_nki_he_{split}.h5", **columns)
    return tmp_path / "vgh_nki"


def test_the_published_layout_is_read_file_by_file_row_by_row(pathology_gan: Path) -> None:
    inputs = listed(pathology_gan, columns={"label": "*_labels"}, mpp=0.5)
    assert [outcome(item) for item in inputs] == [image.tobytes() for image in (*images(4, 1), *images(11, 0))]
    assert inputs[0].path == "hdf5_vgh_nki_he_test.h5/test_img[0]"
    assert inputs[14].path == "hdf5_vgh_nki_he_train.h5/train_img[10]"
    assert inputs[14].stem == "hdf5_vgh_nki_he_train/train_img-000010"
    assert [item.label for item in inputs] == ["0", "1"] * 2 + ["0", "1"] * 5 + ["0"]
    assert {item.mpp for item in inputs} == {0.5}
    keys = [make_key("vgh", item.stem) for item in inputs]
    assert keys == sorted(keys)


@pytest.mark.parametrize("unit_inputs", [1, 3, 4, 100])
def test_the_order_does_not_depend_on_the_size_of_a_unit(pathology_gan: Path, unit_inputs: int) -> None:
    assert described(listed(pathology_gan, unit_inputs)) == described(listed(pathology_gan))


def test_a_single_file_and_its_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.hdf5",
        x=images(3),
        y=np.array([[1.0], [2.0], [0.5]]),
        case=np.array([b"P1", b"P2", b"P2"]),
        left=np.array([0, 10, -5]),
        scale=np.array([0.5, np.nan, 0.25]),
    )
    columns = {"label": "y", "patient": "case", "x": "left", "mpp": "/scale"}
    inputs = listed(file, columns=columns, mpp=1.0)
    assert [(item.label, item.patient, item.x, item.mpp) for item in inputs] == [
        ("1", "P1", 0, 0.5),
        ("2", "P2", 10, 1.0),
        ("0.5", "P2", -5, 0.25),
    ]
    assert (inputs[2].path, inputs[2].stem) == ("a.hdf5/x[2]", "x-000002")


def test_chunked_and_compressed_data_sets_in_groups_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as made:
        made.create_dataset("deep/er/img", data=images(150), chunks=(40, 16, 16, 3), compression="gzip")
        made.create_dataset("masks", data=images(150, channels=2)[..., 0])
    inputs = listed(tmp_path / "a.h5")
    assert [outcome(item) for item in inputs] == [image.tobytes() for image in images(150)]
    assert inputs[149].path == "a.h5/deep/er/img[149]"


def test_gray_alpha_and_sixteen_bits_follow_the_rules_of_image_files(tmp_path: Path) -> None:
    gray, sixteen = images(1, channels=1), images(1).astype(np.uint16) * 257
    opaque = np.concatenate([images(1), np.full((1, 16, 16, 1), 255, np.uint8)], -1)
    file = write(tmp_path / "a.h5", gray=gray, sixteen=sixteen, opaque=opaque)
    rgb = images(1)[0].tobytes()
    assert outcome(listed(file, columns={"image": "sixteen"})[0]) == rgb
    assert outcome(listed(file, columns={"image": "opaque"})[0]) == rgb
    assert outcome(listed(file, columns={"image": "gray"})[0]) == np.repeat(gray[0], 3, -1).tobytes()


def test_floats_are_read_only_by_name_and_only_if_they_are_whole_numbers(tmp_path: Path) -> None:
    floats = images(4).astype(np.float32)
    floats[1] /= 255
    floats[2, 0, 0, 0] = np.nan
    floats[3, 0, 0, 0] = 256
    file = write(tmp_path / "a.h5", img=floats)
    with pytest.raises(DataError, match=r"no data set of uint8 images .*holds img float32 \(4, 16, 16, 3\); name one"):
        listed(file)
    whole, scaled, undefined, large = (outcome(item) for item in listed(file, columns={"image": "img"}))
    assert whole == images(1)[0].tobytes()
    assert scaled == f"refused: not whole numbers in 0..255: {floats[1].min():g} to 1"
    assert undefined == "refused: not whole numbers in 0..255: nan to nan"
    assert large == "refused: not whole numbers in 0..255: 0 to 256"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"several data sets of images: it holds a uint8 \(3, 16, 16, 3\); b uint8 \(3, 16, 16, 3\); name one in"),
        ({"image": "c"}, r"no data set 'c' \(columns.image\); it holds a uint8"),
        ({"image": "labels"}, r"labels int64 \(2,\) \(columns.image\); expected numbers of shape"),
        ({"image": "[ab]"}, r"2 data sets fit '\[ab\]'"),
        (
            {"image": "a", "label": "labels"},
            r"labels int64 \(2,\) \(columns.label\); expected one value for each of the 3",
        ),
        ({"image": "a", "x": "names"}, r"a\[0\]: 'names' holds 'one', expected a whole number as the x"),
        ({"image": "a", "mpp": "zeros"}, "'zeros' holds 0, expected a number above 0 as the mpp"),
    ],
)
def test_what_does_not_fit_is_said_with_what_is_there(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    names, zeros = np.array([b"one", b"two", b"three"]), np.zeros(3, np.int64)
    file = write(tmp_path / "f.h5", a=images(3), b=images(3), labels=np.zeros(2, np.int64), names=names, zeros=zeros)
    with pytest.raises(DataError, match=message):
        listed(file, columns=columns)


def test_a_missing_label_refuses_the_image(tmp_path: Path) -> None:
    file = write(tmp_path / "f.h5", a=images(2), label=np.array([np.nan, 1]))
    first, second = listed(file, columns={"label": "label"})
    assert (outcome(first), second.label) == ("refused: no label", "1")


def test_a_damaged_chunk_costs_its_images_alone(tmp_path: Path) -> None:
    file = tmp_path / "f.h5"
    with h5py.File(file, "w") as made:
        made.create_dataset("a", data=images(6), chunks=(2, 16, 16, 3), compression="gzip", fletcher32=True)
        place = made["a"].id.get_chunk_info(1)
    data = bytearray(file.read_bytes())
    data[place.byte_offset + 20] ^= 0xFF
    file.write_bytes(data)
    outcomes = [outcome(item) for item in listed(file)]
    whole = [image.tobytes() for image in images(6)]
    assert outcomes == [*whole[:2], *["refused: truncated or damaged"] * 2, *whole[4:]]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "f.h5", a=images(6))
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"f\.h5: not an HDF5 file, truncated or unreadable"):
        listed(file)


def test_a_unit_knows_when_its_file_changes(pathology_gan: Path) -> None:
    reader = opened(pathology_gan)
    test, train = reader.units()
    before = reader.state(test), reader.state(train)
    write(pathology_gan / test.path, test_img=images(4, 7))
    assert reader.state(test) != before[0]
    assert reader.state(train) == before[1]
