"""B2: uint8 arrays to JPEG and into a tar, in one thread, against Pillow and webdataset's writer.

All encode at quality 95 with chroma 4:2:0, which is Pillow's default and not simplejpeg's. imagecodecs' bytes are
Pillow's. simplejpeg's are not: below quality 96 its library takes the fast, less exact DCT, whatever it is asked for.
So the benchmark says how far its pixels are from Pillow's, and fails when that is more than a fast DCT explains.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import webdataset

from bench.compare import Outcome, OutputsDifferError, compare
from bench.pack import PER_SHARD, Writing, same_members
from bench.samples import QUALITY, Sample, pil_jpeg
from hdtrain.formats.tar import TarWriter

IMAGECODECS, SIMPLEJPEG, PEER = "imagecodecs + our writer", "simplejpeg + our writer", "Pillow + wds.TarWriter"
EXTS = ("jpg", "cls", "json")
LEAST_PSNR_DB = 42.0
"""Between Pillow's pixels and simplejpeg's; with the fast DCT 44.5 dB was the least of 400 stained patches."""
Encode = Callable[[np.ndarray], bytes]


def imagecodecs_jpeg(pixels: np.ndarray) -> bytes:
    """The same settings as `pil_jpeg`, and the same bytes."""
    return bytes(imagecodecs.jpeg8_encode(pixels, level=QUALITY, subsampling="420"))


def simplejpeg_jpeg(pixels: np.ndarray) -> bytes:
    """The same settings as `pil_jpeg`, but for the DCT."""
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
    return encoded


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 arrays; infinite where they are equal."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


class Encoding:
    """The writers of B2 over one set of samples; `images` take turns over them."""

    def __init__(self, samples: Sequence[Sample], images: Sequence[np.ndarray]):
        self.pixels = {sample.key: images[number % len(images)] for number, sample in enumerate(samples)}
        self.psnr_db: list[float] = []

    def ours(self, encode: Encode) -> Callable[[Path, Sequence[Sample]], None]:
        """An encoder and `hdtrain.formats.tar.TarWriter`."""

        def write(path: Path, samples: Sequence[Sample]) -> None:
            with path.open("wb") as stream:
                writer = TarWriter(stream)
                for sample in samples:
                    writer.add(f"{sample.key}.jpg", encode(self.pixels[sample.key]))
                    writer.add(f"{sample.key}.cls", sample.cls)
                    writer.add(f"{sample.key}.json", sample.json)
                writer.close()

        return write

    def peer(self, path: Path, samples: Sequence[Sample]) -> None:
        """Pillow and `webdataset.TarWriter` as it comes."""
        with path.open("wb") as stream:
            writer = webdataset.TarWriter(stream)
            for sample in samples:
                jpg = pil_jpeg(self.pixels[sample.key])
                writer.write({"__key__": sample.key, "jpg": jpg, "cls": sample.cls, "json": sample.json})
            writer.close()

    def nearly_same(
        self, who: str, found: Iterator[tuple[str, bytes]], samples: Sequence[Sample], exts: Sequence[str]
    ) -> None:
        """Members as `same_members` wants them, but for the JPEGs, whose pixels may be a little off.

        Raises:
            OutputsDifferError: more than a little.
        """
        members = dict(found)
        pillow = {f"{sample.key}.jpg": sample.jpg for sample in samples}
        for name in pillow.keys() & members.keys():
            distance = psnr_db(simplejpeg.decode_jpeg(members[name]), simplejpeg.decode_jpeg(pillow[name]))
            if distance < LEAST_PSNR_DB:
                raise OutputsDifferError(f"{who}: {name} is {distance:.1f} dB from Pillow's, not {LEAST_PSNR_DB:g} dB")
            self.psnr_db.append(distance)
        same_members(who, iter((members | (pillow if pillow.keys() <= members.keys() else {})).items()), samples, exts)


def run(samples: Sequence[Sample], images: Sequence[np.ndarray], folder: Path, rounds: int) -> Outcome:
    """The contest, written below `folder`.

    Raises:
        OutputsDifferError: imagecodecs' bytes are not Pillow's, or simplejpeg's pixels too far from them.
    """
    encoding = Encoding(samples, images)
    shards = [samples[first : first + PER_SHARD] for first in range(0, len(samples), PER_SHARD)]
    writings = [
        Writing(IMAGECODECS, encoding.ours(imagecodecs_jpeg), folder / "imagecodecs", shards, EXTS),
        Writing(SIMPLEJPEG, encoding.ours(simplejpeg_jpeg), folder / "simplejpeg", shards, EXTS, encoding.nearly_same),
        Writing(PEER, encoding.peer, folder / "pillow", shards, EXTS),
    ]
    contestants = [writing.contestant() for writing in writings]
    outcome = compare("encode and pack: uint8 to JPEG q95 4:2:0", "samples/s", len(samples), contestants, rounds)
    outcome.expect(IMAGECODECS, PEER, 1.75)
    outcome.expect(SIMPLEJPEG, PEER, 1.75)
    outcome.notes += [
        "one thread each; quality 95, 4:2:0 on all sides; neither sha256 nor fsync",
        "imagecodecs: the same bytes as Pillow; simplejpeg: pixels "
        f"{np.mean(encoding.psnr_db):.1f} dB from Pillow's (fast DCT)",
    ]
    return outcome
