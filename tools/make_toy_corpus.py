"""Draw the raw data of the demo: tissue-like patches in four made-up sources, and one real image.

    python tools/make_toy_corpus.py OUT [--size-px 64] [--seed 0] [--unlabelled 700] [--train 200] [--test 60]

OUT/unlabelled/{source_a,source_b,source_c}/slide11_00000.png   three stains; PNG, JPEG and RGBA PNG
OUT/labelled/{train,test}/{CLASS}/slide01_00000.png             a fourth; six classes, split by slide
OUT/real/immunohistochemistry.png                               512×512, as scikit-image ships it
OUT/corpus.json                                                 arguments and counts

The classes differ in structure and not in colour. Every image is a function of the seed, its folder and its
number; the number of worker processes changes nothing. OUT appears whole or not at all.
"""

import argparse
import json
import os
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from toy_corpus import stain, tissue

from hdtrain.errors import DataError, HdtrainError
from hdtrain.formats.atomic import write_json

VERSION = 1
"""Of the drawing: goes up when the same arguments give other images."""
TRAIN_SLIDES, TEST_SLIDES = slice(0, 6), slice(6, 9)
CHUNK = 32


class Patch(NamedTuple):
    """One image to draw."""

    folder: str
    source: str
    kind: str | None
    """Class, or None for a patch of mixed tissue."""
    slide: int
    number: int


def planned(unlabelled: int, train: int, test: int) -> Iterator[Patch]:
    """Every image of a corpus; slides take turns."""
    for source, scanner in stain.SCANNERS.items():
        if source != "labelled":
            for i in range(unlabelled):
                yield Patch(f"unlabelled/{source}", source, None, scanner.slides[i % len(scanner.slides)], i)
    for split, count, part in (("train", train, TRAIN_SLIDES), ("test", test, TEST_SLIDES)):
        slides = stain.SCANNERS["labelled"].slides[part]
        for kind in tissue.CLASSES:
            for i in range(count):
                yield Patch(f"labelled/{split}/{kind}", "labelled", kind, slides[i % len(slides)], i)


def generator(seed: int, name: str, index: int) -> np.random.Generator:
    """The random numbers of one image or slide."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def render(patch: Patch, size_px: int, seed: int) -> bytes:
    """Draw one image and encode it."""
    rng = generator(seed, patch.folder, patch.number)
    scanner = stain.SCANNERS[patch.source]
    if patch.kind is None:
        haematoxylin, eosin = tissue.draw_mixed(size_px, rng)
    else:
        palette = stain.random_palette(size_px**2, rng)
        haematoxylin, eosin = stain.repaint(*tissue.draw(patch.kind, size_px, rng), palette)
    stains = stain.slide_stains(scanner, generator(seed, "slide", patch.slide))
    return stain.encode(stain.to_rgb(haematoxylin, eosin, stains, scanner, rng), scanner)


def write_chunk(patches: list[Patch], root: Path, size_px: int, seed: int) -> Counter[str]:
    """Draw and write some images; returns how many went into each folder."""
    for patch in patches:
        name = f"slide{patch.slide:02d}_{patch.number:05d}.{stain.SCANNERS[patch.source].suffix}"
        (root / patch.folder / name).write_bytes(render(patch, size_px, seed))
    return Counter(patch.folder for patch in patches)


def write_real(root: Path) -> None:
    """The immunohistochemistry image that scikit-image ships (512×512 RGB), lossless."""
    from PIL import Image
    from skimage.data import immunohistochemistry

    folder = root / "real"
    folder.mkdir(parents=True)
    Image.fromarray(immunohistochemistry()).save(folder / "immunohistochemistry.png")


def write_images(patches: list[Patch], root: Path, size_px: int, seed: int, workers: int) -> Counter[str]:
    """Write every image below `root`, in `workers` processes, with a line of progress on stderr."""
    for folder in {patch.folder for patch in patches}:
        (root / folder).mkdir(parents=True)
    chunks = [patches[i : i + CHUNK] for i in range(0, len(patches), CHUNK)]
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        run = pool.map if workers > 1 else map
        for part in run(write_chunk, chunks, *([value] * len(chunks) for value in (root, size_px, seed))):
            counts += part
            if sys.stderr.isatty():
                print(f"\r{counts.total()}/{len(patches)} images", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return counts


def make_corpus(out: Path, *, size_px: int, seed: int, unlabelled: int, train: int, test: int, workers: int) -> str:
    """Write the corpus, or find it written; returns the summary line.

    Raises:
        DataError: `out` holds something else.
    """
    arguments = {"size_px": size_px, "seed": seed, "unlabelled": unlabelled, "train": train, "test": test}
    recipe = {"version": VERSION, "arguments": arguments}
    record = out / "corpus.json"
    if record.is_file():
        found = json.loads(record.read_text())
        if {key: found.get(key) for key in recipe} == recipe:
            return f"{out}: already there, made with the same arguments"
        raise DataError(
            f"{out}: holds a corpus made with {found.get('arguments')}, version {found.get('version')}; "
            f"wanted {arguments}, version {VERSION}; delete the folder or choose another"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, found something that is no corpus; choose another")
    start = time.monotonic()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts = write_images(list(planned(unlabelled, train, test)), partial, size_px, seed, workers)
    write_real(partial)
    counts["real"] = 1
    slides = {source: list(scanner.slides) for source, scanner in stain.SCANNERS.items()}
    write_json(partial / "corpus.json", recipe | {"classes": list(tissue.CLASSES), "slides": slides, "counts": counts})
    partial.replace(out)
    return f"{out}: {counts.total()} images in {len(counts)} folders, {time.monotonic() - start:.1f} s"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the raw data of the demo.")
    parser.add_argument("out", type=Path, help="folder to make")
    for flag, default, smallest, what in (
        ("--size-px", 64, 16, "side of a patch"),
        ("--seed", 0, 0, "of all drawing"),
        ("--unlabelled", 700, 1, "images in each of the three unlabelled sources"),
        ("--train", 200, 1, "labelled training images a class"),
        ("--test", 60, 1, "labelled test images a class"),
        ("--workers", os.cpu_count() or 1, 1, "processes; the images do not depend on it"),
    ):
        parser.add_argument(flag, type=_at_least(smallest), default=default, help=f"{what} (default: {default})")
    options = vars(parser.parse_args(argv))
    try:
        print(make_corpus(options.pop("out").resolve(), **options))
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _at_least(smallest: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {value}")
        return value

    return integer


if __name__ == "__main__":
    sys.exit(main())
