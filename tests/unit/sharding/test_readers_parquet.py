import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def class_label(*names: str) -> dict[bytes, bytes]:
    """What the library `datasets` writes into a table's schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def hugging_face(path: Path, labels: list[int | None], names: tuple[str, ...] = ("ADI", "TUM")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": b"%s %d" % (path.stem.encode(), row), "path": f"{row}.png"} for row in range(len(labels))]
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=class_label(*names))
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64())}, schema=schema)
    pq.write_table(table, path, row_group_size=4)
    return path


def test_a_hugging_face_folder_is_read_file_by_file_with_its_class_names(tmp_path: Path) -> None:
    for number in range(2):
        hugging_face(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", [0, 1] * 5)
    inputs = listed(tmp_path, columns={"label": "label"})
    assert [outcome(item) for item in inputs] == [
        b"train-0000%d-of-00002 %d" % (number, row) for number in range(2) for row in range(10)
    ]
    assert [item.label for item in inputs] == ["ADI", "TUM"] * 10
    assert inputs[13].path == "data/train-00001-of-00002.parquet[3]"
    assert inputs[13].stem == "data/train-00001-of-00002-000003"
    assert opened(tmp_path, columns={"label": "label"}).classes == ["ADI", "TUM"]
    assert opened(tmp_path).classes is None
    assert {item.label for item in listed(tmp_path)} == {None}


@pytest.mark.parametrize("unit_inputs", [4, 5, 8, 100])
def test_the_order_does_not_depend_on_the_size_of_a_unit(tmp_path: Path, unit_inputs: int) -> None:
    file = hugging_face(tmp_path / "a.parquet", [0] * 19)
    expected = described(listed(file))
    reader = opened(file)
    reader.unit_inputs = unit_inputs  # type: ignore[attr-defined]
    units = list(reader.units())
    assert sum(unit.num_inputs for unit in units) == 19
    assert len(units) == {4: 5, 5: 3, 8: 3, 100: 1}[unit_inputs]  # whole row groups of 4
    assert described([item for unit in units for item in opened(file).read(unit)]) == expected


def test_plain_columns_of_bytes_and_nested_fields(tmp_path: Path) -> None:
    place = [{"x": 5, "y": 7.0, "scan": {"id": "S1"}}, {"x": None, "y": None, "scan": None}]
    table = pa.table(
        {"png": pa.array([b"1", b"2"], pa.large_binary()), "at": place, "a.b": ["P1", "P2"], "mpp": [0.5, 0]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    columns = {"x": "at.x", "y": "at.y", "slide": "at.scan.id", "patient": "a.b"}
    first, second = listed(tmp_path / "a.parquet", columns=columns, mpp=0.25)
    assert (first.x, first.y, first.slide, first.patient, first.mpp) == (5, 7, "S1", "P1", 0.25)
    assert (second.x, second.y, second.slide, second.patient) == (None, None, None, "P2")
    assert [outcome(first), outcome(second), second.path, second.stem] == [b"1", b"2", "a.parquet[1]", "000001"]
    with pytest.raises(DataError, match=r"'mpp' holds 0\.0, expected a number above 0 as the mpp"):
        listed(tmp_path / "a.parquet", columns={"mpp": "mpp"})


@pytest.mark.parametrize(("kind", "values"), [(pa.string(), ["3", "x"]), (pa.binary(), [b"3", b"x"])])
def test_labels_of_text_or_bytes_are_text(tmp_path: Path, kind: pa.DataType, values: list[Any]) -> None:
    table = pa.table({"png": pa.array([b"1", b"2"]), "label": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [i.label for i in listed(tmp_path, columns={"image": "png", "label": "label"})] == ["3", "x"]


def test_rows_without_an_image_or_a_label_are_refused(tmp_path: Path) -> None:
    rows = [
        {"bytes": None, "path": "somewhere/1.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"3", "path": None},
    ]
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=class_label("a"))
    table = pa.table({"image": pa.array(rows, IMAGE), "label": pa.array([0, 0, 0, -1])}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")
    assert [outcome(item) for item in listed(tmp_path, columns={"label": "label"})] == [
        "refused: no bytes in the table, only the path of a file",
        "refused: no image in the row",
        "refused: no image in the row",
        "refused: no label",
    ]
    assert outcome(listed(tmp_path)[3]) == b"3"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {},
            r"several columns of bytes \(a, b\); name one in columns.image; it has a \(binary\), b \(binary\), n",
        ),
        ({"image": "c"}, r"no column 'c' \(columns.image\); it has a \(binary\)"),
        ({"image": "n"}, r"column 'n' \(columns.image\) is int64, expected bytes"),
        ({"image": "a", "label": "n.x"}, r"no column 'n.x' \(columns.label\)"),
    ],
)
def test_columns_that_do_not_fit_are_said_with_what_is_there(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table({"a": [b""], "b": [b""], "n": [1]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=f"f.parquet: {message}"):
        listed(tmp_path, columns=columns)


def test_a_table_without_bytes_and_a_label_without_a_name_are_errors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"no column of image bytes; name one in columns.image; it has n \(int64\)"):
        listed(tmp_path)
    hugging_face(tmp_path / "f.parquet", [0, 2])
    with pytest.raises(DataError, match="label 2, but its metadata name 2 classes"):
        listed(tmp_path, columns={"label": "label"})


def test_a_truncated_and_a_damaged_table_are_named(tmp_path: Path) -> None:
    file = hugging_face(tmp_path / "f.parquet", [0] * 9)
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"f\.parquet: not a Parquet file, truncated or unreadable"):
        listed(file)
    offset = pq.ParquetFile(hugging_face(file, [0] * 9)).metadata.row_group(1).column(0).data_page_offset
    file.write_bytes(whole[:offset] + b"\xff" * 40 + whole[offset + 40 :])
    with pytest.raises(DataError, match=r"f\.parquet: damaged at row \d or after it"):
        listed(file)


def test_real_images_come_out_as_they_went_in(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "eurosat_rgb" / "Forest").iterdir())[:300]
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE)}), tmp_path / "f.parquet", row_group_size=70)
    assert [outcome(item) for item in listed(tmp_path, 140)] == [file.read_bytes() for file in files]


def test_a_unit_knows_when_its_file_changes(tmp_path: Path) -> None:
    reader = opened(hugging_face(tmp_path / "f.parquet", [0]))
    (unit,) = reader.units()
    before = reader.state(unit)
    hugging_face(tmp_path / "f.parquet", [0, 0])
    assert reader.state(unit) != before
