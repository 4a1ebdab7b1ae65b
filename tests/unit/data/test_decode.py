"""Decoding: the bytes' own pixels, and the two ways to a square."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_chain import draw

from hdtrain.data.decode import decode_rgb, fit
from hdtrain.errors import DataError


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("JPEG", {"quality": 75}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 60, "progressive": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(64, 64), (41, 57)])
def test_pixels_are_those_of_pil_bit_for_bit(kind, options, shape):
    rng = np.random.default_rng(0)
    data = encode(draw(0, rng, 64)[: shape[0], : shape[1]], kind, **options)
    np.testing.assert_array_equal(decode_rgb(memoryview(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_images_become_rgb(kind):
    gray = draw(1, np.random.default_rng(0))[..., 0]
    decoded = decode_rgb(encode(gray, kind))
    assert decoded.shape == (32, 32, 3)
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("damage", ["truncated", "rubbish"])
def test_broken_bytes_are_a_data_error(kind, damage):
    data = encode(draw(1, np.random.default_rng(0)), kind)
    data = data[: len(data) // 2] if damage == "truncated" else data[:4] + b"rubbish" * 9
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_rgb(data)


def test_squash_is_one_bicubic_resize_and_an_image_of_the_right_size_is_left_alone():
    image = draw(0, np.random.default_rng(0), 64)[:48]
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit(image, 32, "squash"), expected)
    square = image[:32, :32]
    assert fit(square, 32, "squash") is square
    assert fit(square, 32, "crop") is square


def test_crop_keeps_the_aspect_ratio_and_takes_the_centre():
    wide = draw(0, np.random.default_rng(0), 64)[:32]
    np.testing.assert_array_equal(fit(wide, 32, "crop"), wide[:, 16:48])
    np.testing.assert_array_equal(fit(wide.transpose(1, 0, 2), 32, "crop"), wide[:, 16:48].transpose(1, 0, 2))
    assert fit(wide, 16, "crop").shape == (16, 16, 3)
    assert not np.array_equal(fit(wide, 32, "squash"), wide[:, 16:48])
