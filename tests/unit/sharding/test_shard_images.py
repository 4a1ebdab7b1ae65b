import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from sharding_helpers import encode, noise

from sharding.images import UnusableError, decode, encode_png, resize

RGB = noise()
GRAY = RGB[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (16, 16, 4), dtype=np.uint16)


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def eight_bit(deep: np.ndarray) -> np.ndarray:
    return np.round(deep / 257).astype(np.uint8)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.floor(share * pixels + (1 - share) * 255 + 0.5 + 1e-9).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "ext"),
    [
        (encode(Image.fromarray(RGB), "PNG"), "png"),
        (encode(Image.fromarray(RGB), "JPEG"), "jpg"),
        (encode(Image.fromarray(RGB), "TIFF"), "tif"),
        (encode(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), "tif"),
        (encode(Image.fromarray(RGB), "PNG") + b"trailing", "png"),
    ],
)
def test_rgb_may_be_stored_as_it_is(data: bytes, ext: str) -> None:
    decoded = decode(data)
    assert decoded.ext == ext
    np.testing.assert_array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data))))


PALETTE = Image.fromarray(RGB).quantize(16)
CMYK = encode(Image.fromarray(RGB).convert("CMYK"), "TIFF")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(Image.fromarray(GRAY), "PNG"), np.dstack([GRAY] * 3), id="gray png"),
        pytest.param(encode(Image.fromarray(GRAY), "TIFF"), np.dstack([GRAY] * 3), id="gray tiff"),
        pytest.param(
            imagecodecs.png_encode(DEEP[..., 0].copy()), np.dstack([eight_bit(DEEP[..., 0])] * 3), id="gray 16-bit png"
        ),
        pytest.param(tiff(DEEP[..., 0]), np.dstack([eight_bit(DEEP[..., 0])] * 3), id="gray 16-bit tiff"),
        pytest.param(imagecodecs.png_encode(DEEP[..., :3].copy()), eight_bit(DEEP[..., :3]), id="rgb 16-bit png"),
        pytest.param(tiff(DEEP[..., :3], photometric="rgb"), eight_bit(DEEP[..., :3]), id="rgb 16-bit tiff"),
        pytest.param(
            tiff(np.moveaxis(DEEP[..., :3], -1, 0).copy(), photometric="rgb", planarconfig="separate"),
            eight_bit(DEEP[..., :3]),
            id="rgb 16-bit planar tiff",
        ),
        pytest.param(
            imagecodecs.png_encode(DEEP),
            over_white(eight_bit(DEEP[..., :3]), eight_bit(DEEP[..., 3])),
            id="rgba 16-bit png",
        ),
        pytest.param(encode(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), id="palette"),
        pytest.param(CMYK, np.asarray(Image.open(io.BytesIO(CMYK)).convert("RGB")), id="cmyk"),
        pytest.param(encode(Image.fromarray(np.dstack([RGB, GRAY])), "PNG"), over_white(RGB, GRAY), id="rgba"),
        pytest.param(
            encode(Image.merge("LA", [Image.fromarray(RGB[..., 1]), Image.fromarray(GRAY)]), "PNG"),
            over_white(np.dstack([RGB[..., 1]] * 3), GRAY),
            id="gray with alpha",
        ),
        pytest.param(
            tiff(RGB, photometric="rgb", compression="jpeg2000", compressionargs={"reversible": True}),
            RGB,
            id="jpeg 2000 tiff",
        ),
    ],
)
def test_other_modes_follow_the_stated_rule_and_are_re_encoded(data: bytes, expected: np.ndarray) -> None:
    decoded = decode(data)
    assert decoded.ext is None
    np.testing.assert_array_equal(decoded.pixels, expected)
    np.testing.assert_array_equal(decode(encode_png(decoded.pixels)).pixels, expected)


def test_a_transparent_palette_colour_becomes_white() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 1
    image = Image.fromarray(pixels, "L").convert("P")
    image.putpalette([200, 10, 10, 10, 200, 10])
    decoded = decode(encode(image, "PNG", transparency=1))
    assert decoded.pixels[0, 0].tolist() == [200, 10, 10]
    assert decoded.pixels[0, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_reject_refuses_transparency(channels: int) -> None:
    data = imagecodecs.png_encode(noise(channels=channels))
    with pytest.raises(UnusableError, match=r"^transparency$"):
        decode(data, "reject")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x7fELF" * 100, "not an image"),
        (encode(Image.fromarray(RGB), "BMP"), "unsupported format: BMP"),
        (tiff(np.zeros((16, 16), np.float32)), "unsupported mode: float32 MINISBLACK"),
        (encode(Image.fromarray(GRAY).convert("1"), "PNG"), "unsupported mode: 1"),
        (tiff(np.zeros((3, 16, 16, 3), np.uint8), photometric="rgb"), "several pages"),
        (encode(Image.fromarray(noise(7)), "PNG"), "smaller than 8 px"),
    ],
)
def test_what_cannot_be_stored_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        decode(data)
    assert str(caught.value) == reason


WHOLE = {
    "jpg": encode(Image.fromarray(noise(64)), "JPEG"),
    "gray jpg": encode(Image.fromarray(noise(64)[..., 0]), "JPEG"),
    "png": encode(Image.fromarray(noise(64)), "PNG"),
    "16-bit png": imagecodecs.png_encode(noise(64).astype(np.uint16) * 257),
    "tif": encode(Image.fromarray(noise(64)), "TIFF"),
    "lzw tif": encode(Image.fromarray(noise(64)), "TIFF", compression="tiff_lzw"),
    "16-bit tif": tiff(noise(64).astype(np.uint16) * 257, photometric="rgb"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_truncated_file_never_passes(kind: str, share: float) -> None:
    data = WHOLE[kind]
    decode(data)
    with pytest.raises(UnusableError):
        decode(data[: int(len(data) * share)])


def test_a_png_that_lost_only_its_end_is_truncated_too() -> None:
    with pytest.raises(UnusableError, match="truncated"):
        decode(WHOLE["png"][:-12])


def test_resize_makes_a_square() -> None:
    assert resize(np.full((30, 50, 3), 7, np.uint8), 16).tolist() == np.full((16, 16, 3), 7).tolist()
