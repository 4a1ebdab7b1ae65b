"""Make raw data in the layouts of the three published sources, at their published counts, of small images.

    python tools/make_scale_corpus.py build/scale [--share 1.0] [--size-px 32] [--copies 0.01] [--seed 0]

What a corpus of 803,179 patches does to `hdtrain shard`, `verify` and the reader can then be seen in minutes:

    hdtrain run configs/recipe/corpus.yaml histotma=build/scale/histotma pannuke=build/scale/pannuke \\
        tcga=build/scale/tcga --ranks 2

Images are crops of the immunohistochemistry slide that scikit-image ships, each at another place and brightness. A
share of HistoTMA's are turned or mirrored copies of others, as in the published files.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from skimage import data

from hdtrain.progress import Progress
from sharding.duplicates import SYMMETRIES, turn

HISTOTMA = {"train": 249_856, "test": 62_464}
"""312,320 in all; how they are divided is made up."""
PANNUKE = (2_656, 2_523, 2_722)
TCGA = 482_958
TILES_A_SLIDE = 500
_SLAB = 1_000


def crops(count: int, size_px: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """`count` crops, uint8 RGB (size, size, 3), no two alike."""
    image = np.ascontiguousarray(data.immunohistochemistry()).astype(np.int16)
    generator = np.random.default_rng(seed)
    for start in range(0, count, _SLAB):
        number = min(_SLAB, count - start)
        tops, lefts = generator.integers(0, image.shape[0] - size_px, (2, number))
        shifts = generator.integers(-30, 30, (number, 3))
        noise = generator.integers(-4, 5, (number, size_px, size_px, 1))
        for i in range(number):
            crop = image[tops[i] : tops[i] + size_px, lefts[i] : lefts[i] + size_px]
            yield np.clip(crop + shifts[i] + noise[i], 0, 255).astype(np.uint8)


def make_histotma(folder: Path, counts: dict[str, int], size_px: int, copies: float, seed: int, tick: Progress) -> None:
    """PathologyGAN's HDF5 files; `copies` of the images are earlier ones, turned or mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index, (part, count) in enumerate(counts.items()):
        with h5py.File(folder / f"hdf5_vgh_nki_he_{part}.h5", "w") as file:
            images = file.create_dataset(f"{part}_img", (count, size_px, size_px, 3), np.uint8)
            file.create_dataset(f"{part}_labels", data=generator.integers(0, 2, (count, 1)).astype(np.float32))
            slab: list[NDArray[np.uint8]] = []
            start = 0
            for crop in crops(count, size_px, seed + 1 + index):
                if slab and generator.random() < copies:
                    crop = turn(slab[generator.integers(len(slab))], int(generator.integers(SYMMETRIES)))
                slab.append(crop)
                tick.update(1)
                if len(slab) == _SLAB or start + len(slab) == count:
                    images[start : start + len(slab)] = np.stack(slab)
                    start, slab = start + len(slab), []


def make_pannuke(folder: Path, counts: tuple[int, ...], size_px: int, seed: int, tick: Progress) -> None:
    """`Fold k/images/foldk/{images,types}.npy`, images float64 holding 0..255."""
    for fold, count in enumerate(counts, start=1):
        inner = folder / f"Fold {fold}" / "images" / f"fold{fold}"
        inner.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(inner / "images.npy", "w+", np.float64, (count, size_px, size_px, 3))
        for row, crop in enumerate(crops(count, size_px, seed + 10 + fold)):
            images[row] = crop
            tick.update(1)
        images.flush()
        np.save(inner / "types.npy", np.array(["Breast", "Colon"])[np.arange(count) % 2])


def make_tcga(folder: Path, count: int, size_px: int, seed: int, tick: Progress) -> None:
    """JPEG tiles in a folder a slide, named by barcode and position."""
    for row, crop in enumerate(crops(count, size_px, seed + 20)):
        slide, tile = divmod(row, TILES_A_SLIDE)
        name = f"TCGA-A2-{slide // 2:04d}-01Z-00-DX{slide % 2 + 1}"
        path = folder / name / f"{name}_{tile % 32 * size_px}_{tile // 32 * size_px}.jpg"
        if tile == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(crop, quality=90, colorspace="RGB"))
        tick.update(1)


def main() -> None:
    """Parse the command line and write the three sources."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the published counts")
    parser.add_argument("--size-px", type=int, default=32)
    parser.add_argument("--copies", type=float, default=0.01, help="share of HistoTMA that is a turned copy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    histotma = {part: max(1, int(count * args.share)) for part, count in HISTOTMA.items()}
    pannuke = tuple(max(1, int(count * args.share)) for count in PANNUKE)
    tcga = max(1, int(TCGA * args.share))
    total = sum(histotma.values()) + sum(pannuke) + tcga
    with Progress("make", total) as progress:
        make_histotma(args.out / "histotma", histotma, args.size_px, args.copies, args.seed, progress)
        make_pannuke(args.out / "pannuke", pannuke, args.size_px, args.seed, progress)
        make_tcga(args.out / "tcga", tcga, args.size_px, args.seed, progress)
    print(f"{sum(histotma.values()):,} + {sum(pannuke):,} + {tcga:,} = {total:,} images in {args.out}")


if __name__ == "__main__":
    main()
