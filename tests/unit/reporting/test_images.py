"""Thumbnails and galleries."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting_helpers import CLASSES, Tree, collect_tree, drawn_image

from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.images import MAX_THUMBNAIL_PX, gallery, gallery_of_arms, nearest_pairs, thumbnail
from hdtrain.reporting.render import render


def decode(uri: str | None) -> Image.Image:
    assert uri
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_images_are_doubled_without_inventing_pixels() -> None:
    data = drawn_image(0, 0)
    shown = thumbnail("k", data)
    assert shown.uri
    assert shown.uri.startswith("data:image/png;base64,")
    pixels = np.asarray(decode(shown.uri))
    assert np.array_equal(pixels[::2, 1::2], np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_large_images_of_any_mode_shrink_to_the_limit(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (320, 256)).save(buffer, "PNG")
    assert decode(thumbnail("k", buffer.getvalue()).uri).size[0] == MAX_THUMBNAIL_PX


def test_missing_and_broken_images_say_so() -> None:
    assert (thumbnail("k", None).uri, thumbnail("k", None).note) == (None, "not found")
    assert (thumbnail("k", b"no image").uri, thumbnail("k", b"no image").note) == (None, "cannot be decoded")
    assert thumbnail("k", drawn_image(0, 0)[:200]).note == "cannot be decoded"


def test_gallery_shows_each_kind_and_the_farthest_rejected_first(built: Tree) -> None:
    data = collect_tree(built)
    rows = gallery(data.selection, CLASSES, 2)["stroma"]
    assert [row.title for row in rows] == ["real", "random-1", "selective-1", "rejected"]
    assert [row.total for row in rows] == [6, 3, 3, 3]
    assert [image.key for image in rows[-1].images] == ["synthetic-1-104", "synthetic-1-102"]
    assert rows[-1].images[0].note == "nearest: lymphocytes"
    shown = np.asarray(decode(rows[-1].images[0].uri))[::2, ::2]
    assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(drawn_image(1, 104)))))
    assert gallery(data.selection, CLASSES, 2)["stroma"] == rows


def test_without_a_selection_every_arm_shows_its_images(built: Tree) -> None:
    data = replace(collect_tree(built), selection=None)
    rows = gallery_of_arms(data.evaluation, CLASSES, 2)["stroma"]
    arms = [name for name, arm in data.results.arms.items() if arm.num_synthetic]
    assert [row.title for row in rows] == ["real", *arms]
    assert all(len(row.images) == 2 and image.uri for row in rows for image in row.images)
    assert "All are drawn by a fixed seed" in render(data)


def test_pairs_show_the_right_images_the_closest_first(built: Tree) -> None:
    data = collect_tree(built)
    shown_pairs = nearest_pairs(data.evaluation, data.results.nearest)
    assert list(shown_pairs) == ["features"]
    pairs = shown_pairs["features"]
    assert [shown.pair.distance for shown in pairs] == sorted(pair.distance for pair in data.results.nearest)
    assert np.array_equal(
        np.asarray(decode(pairs[0].real.uri))[::2, ::2], np.asarray(Image.open(io.BytesIO(drawn_image(0, 0))))
    )
    assert all(shown.synthetic.uri and shown.real.uri for shown in pairs)


@pytest.mark.needs_data
def test_real_patches_become_thumbnails(real_data: Path) -> None:
    patch = sorted((real_data / "kather2016_crc8" / "train" / "01_TUMOR").iterdir())[0]
    shown = np.asarray(decode(thumbnail("k", patch.read_bytes()).uri), float)
    plain = Image.open(patch).convert("RGB").resize((MAX_THUMBNAIL_PX, MAX_THUMBNAIL_PX), Image.Resampling.BOX)
    assert np.abs(shown - np.asarray(plain, float)).mean() < 10
    assert np.asarray(plain).std() > 20


def test_shards_that_were_removed_are_counted_and_the_rest_is_shown(built: Tree) -> None:
    RunDir(built.root / "synthetic").shards.joinpath("000000.tar").unlink()
    rows = gallery(collect_tree(built).selection, CLASSES, 2)["tumour"]
    assert [row.missing_shards for row in rows] == [0, 0, 0, 1]
    assert [image.note for image in rows[-1].images] == ["not found", "not found"]
    assert rows[0].images[0].uri
