from collections.abc import Callable
from pathlib import Path

import pytest
from reader_helpers import described, listed, make_zip, opened, outcome

from hdtrain.errors import DataError
from sharding.readers.tcga import TcgaReader, barcodes, position

SLIDE = "TCGA-A2-A0T2-01Z-00-DX1"
UUID = "29A5C4D0-6AFE-4C1D-9A01-0123456789ab"


def tiles(make_images: Callable[..., Path], *names: str) -> Path:
    root = make_images("tcga", 0)
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"tile %d" % number)
    return root


def test_slide_patient_and_position_come_from_folders_and_names(make_images: Callable[..., Path]) -> None:
    root = tiles(make_images, f"{SLIDE}/12_34.png", f"{SLIDE}.{UUID}_512_1024.jpg", "x/TCGA-E2-A14N/tile_x7_y8.png")
    found = {item.path: (item.slide, item.patient, item.x, item.y, item.label) for item in listed(root, layout="tcga")}
    assert found == {
        f"{SLIDE}/12_34.png": (SLIDE, "TCGA-A2-A0T2", None, None, None),
        f"{SLIDE}.{UUID}_512_1024.jpg": (SLIDE, "TCGA-A2-A0T2", 512, 1024, None),
        "x/TCGA-E2-A14N/tile_x7_y8.png": (None, "TCGA-E2-A14N", 7, 8, None),
    }


def test_auto_recognises_barcodes_in_folders_and_in_the_names_of_a_flat_folder(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    nested = tiles(make_images, f"BRCA/{SLIDE}/a.png", "BRCA/TCGA-E2-A14N-01Z-00-DX1/b.png")
    assert isinstance(opened(nested), TcgaReader)
    assert described(listed(make_zip(nested, tmp_path / "tcga.zip"))) != described(listed(nested))  # BRCA/ is skipped
    assert [item.patient for item in listed(tmp_path / "tcga.zip")] == ["TCGA-A2-A0T2", "TCGA-E2-A14N"]
    flat = make_images("flat", 0)
    (flat / f"{SLIDE}_0_0.png").touch()
    assert isinstance(opened(flat), TcgaReader)
    (flat / "other.png").touch()
    assert not isinstance(opened(flat), TcgaReader)


def test_auto_does_not_choose_between_classes_and_patients(make_images: Callable[..., Path]) -> None:
    root = tiles(make_images, f"MSIMUT/blk-ABC-{SLIDE}.png", f"MSS/blk-DEF-{SLIDE}.png")
    with pytest.raises(DataError, match=r"TCGA barcodes in their names; say layout: tcga .* or layout: class-folders"):
        opened(root)
    assert [item.label for item in listed(root, layout="class-folders")] == ["MSIMUT", "MSS"]


def test_an_image_without_a_barcode_or_with_two_patients_is_refused(make_images: Callable[..., Path]) -> None:
    root = tiles(make_images, "plain.png", f"{SLIDE}/TCGA-E2-A14N_1_2.png", "TCGA-A2-A0T2/ok.png")
    assert {item.path: outcome(item) for item in listed(root, layout="tcga")} == {
        "plain.png": "refused: no TCGA barcode in its path",
        f"{SLIDE}/TCGA-E2-A14N_1_2.png": "refused: barcodes of two patients in its path",
        "TCGA-A2-A0T2/ok.png": b"tile 2",
    }


def test_the_barcode_may_stand_in_the_name_of_the_source_alone(make_images: Callable[..., Path]) -> None:
    root = make_images(SLIDE, 1)
    (item,) = listed(root, layout="tcga")
    assert (item.slide, item.patient) == (SLIDE, "TCGA-A2-A0T2")


def test_a_pattern_comes_first(make_images: Callable[..., Path]) -> None:
    root = tiles(make_images, f"{SLIDE}/r3_c4.png", "other/r5_c6.png")
    first, second = listed(root, layout="tcga", pattern=r"r(?P<y>\d)_c(?P<x>\d)")
    assert (first.patient, first.x, first.y) == ("TCGA-A2-A0T2", 4, 3)
    assert outcome(second) == "refused: no TCGA barcode in its path"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("TCGA-CR-7395-01A-01-TS1_1_2.png", "TCGA-CR-7395-01A-01-TS1"),
        (f"{SLIDE}.{UUID}.svs/1_2.png", SLIDE),
        ("tcga-a2-a0t2-01z-00-dx1/x.png", SLIDE),
        ("TCGA-A2-A0T2-01A/x.png", "TCGA-A2-A0T2-01A"),
        ("TCGA-A2-A0T2_1_2.png", "TCGA-A2-A0T2"),
        ("NORM-TCGA-CLTVRFTD.png", None),  # NCT-CRC-HE's own names
        ("TCGA-A2-A0T25.png", None),
    ],
)
def test_barcodes_are_told_from_what_only_looks_like_one(path: str, expected: str | None) -> None:
    assert max(barcodes(path), default=None, key=len) == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("_100_200", {"x": 100, "y": 200}),
        ("(100,200)", {"x": 100, "y": 200}),
        ("_0_x100_y200", {"x": 100, "y": 200}),
        ("-x100-y200", {"x": 100, "y": 200}),
        (f".{UUID}_100_200", {"x": 100, "y": 200}),
        ("_20x_100_200", {"x": 100, "y": 200}),
        ("_0_100_200", {}),
        ("_100_200_256_256", {}),
        ("_100", {}),
        ("_100_-200", {}),
        ("", {}),
    ],
)
def test_a_position_is_taken_only_where_it_is_plain(end: str, expected: dict[str, int]) -> None:
    assert position(f"a/{SLIDE}{end}.png") == expected


def test_a_tile_of_a_tile_lies_at_the_sum_of_both(make_images: Callable[..., Path]) -> None:
    root = make_images("crops", 1, size_px=32)
    (root / "000.png").rename(root / f"{SLIDE}_100_200.png")
    inputs = listed(root, tile_images=True, tile_px=16)
    assert [(item.slide, item.x, item.y) for item in inputs] == [
        (SLIDE, 100 + x, 200 + y) for y in (0, 16) for x in (0, 16)
    ]
