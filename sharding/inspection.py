"""What is in a data set, for eyes: contact sheet, histograms, and how the sources are stained."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.color import rgb2hed, rgb2lab

from hdtrain.config.shards import InspectConfig
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader, open_shards
from hdtrain.progress import track
from sharding.images import Pixels, UnusableError, decode
from sharding.sampling import draw_samples
from sharding.tiles import tissue_share

_STATISTICS_PX = 64
_TITLE_PX = 18
_BARS = 30


def inspect(config: InspectConfig, manifest: Manifest, out: Path) -> dict[str, Any]:
    """Write `contact.png` and `histograms.png` into `out`.

    Returns:
        Per source `num`, and mean and standard deviation over images of CIELAB lightness and colour, of the
        haematoxylin, eosin and DAB densities (Ruifrok & Johnston 2001) and of the tissue share; sizes; class counts.
    """
    groups: dict[str, list[Pixels]] = defaultdict(list)
    figures: dict[str, list[list[float]]] = defaultdict(list)
    sizes: Counter[tuple[int, int]] = Counter()
    num_bytes: list[int] = []
    total = min(config.sample, manifest.num_samples)
    unreadable = 0
    for reader, index in track(_drawn(config, manifest), total, "inspect"):
        meta = reader.meta(index)
        try:
            pixels = decode(bytes(reader.image(index))).pixels
        except UnusableError:
            unreadable += 1
            continue
        sizes[pixels.shape[1], pixels.shape[0]] += 1
        num_bytes.append(reader.sidecar.sizes[index])
        small = np.asarray(Image.fromarray(pixels).resize((_STATISTICS_PX, _STATISTICS_PX), Image.Resampling.BOX))
        figures[meta.get("source") or "?"].append(_statistics(small))
        group = groups[meta.get("label") or meta.get("source") or "?"]
        if len(group) < config.per_class:
            group.append(_thumbnail(pixels, config.thumbnail_px))
    class_counts: dict[str, int] = manifest.info.get("class_counts") or {}
    write_bytes(out / "contact.png", _png(contact_sheet(groups, config.per_class, config.thumbnail_px)))
    _histograms(out / "histograms.png", class_counts, sizes, num_bytes, figures)
    return {
        "num_samples": manifest.num_samples,
        "num_looked_at": total,
        "num_unreadable": unreadable,
        "class_counts": class_counts,
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.most_common(20)},
        "bytes_per_image": {"mean": float(np.mean(num_bytes)), "max": max(num_bytes)} if num_bytes else {},
        "sources": {name: _summary(np.array(rows)) for name, rows in sorted(figures.items())},
    }


def _drawn(config: InspectConfig, manifest: Manifest) -> Iterator[tuple[ShardReader, int]]:
    """A seeded sample over the data set, shard by shard."""
    readers = open_shards(config.images, manifest)
    for shard, numbers in draw_samples(manifest, config.sample, config.seed).items():
        for number in numbers:
            yield readers[shard], number


_NAMES = ("lightness", "a", "b", "haematoxylin", "eosin", "dab", "tissue_share")


def _statistics(pixels: Pixels) -> list[float]:
    lab, hed = rgb2lab(pixels).mean((0, 1)), rgb2hed(pixels).mean((0, 1))
    return [*lab.tolist(), *hed.tolist(), tissue_share(pixels)]


def _summary(rows: NDArray[np.float64]) -> dict[str, Any]:
    figures = {
        name: {"mean": round(float(column.mean()), 4), "std": round(float(column.std()), 4)}
        for name, column in zip(_NAMES, rows.T, strict=True)
    }
    return {"num": len(rows), **figures}


def _thumbnail(pixels: Pixels, size_px: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.LANCZOS))


def contact_sheet(groups: dict[str, list[Pixels]], columns: int, size_px: int) -> Image.Image:
    """One titled row of thumbnails a group."""
    height = size_px + _TITLE_PX
    sheet = Image.new("RGB", (columns * size_px, max(1, len(groups)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(sorted(groups.items())):
        draw.text((4, row * height + 3), name, fill="black")
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (column * size_px, row * height + _TITLE_PX))
    return sheet


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _histograms(
    path: Path,
    classes: dict[str, int],
    sizes: Counter[tuple[int, int]],
    num_bytes: Sequence[int],
    figures: dict[str, list[list[float]]],
) -> None:
    """Classes, sides, bytes, and a panel for lightness, haematoxylin and eosin by source."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    by_source = {name: len(rows) for name, rows in sorted(figures.items())}
    counts = classes or by_source
    panels[0, 0].barh(list(counts), list(counts.values()))
    panels[0, 0].set_title("samples by class" if classes else "images looked at, by source")
    for axis, name in enumerate(("width", "height")):
        sides = np.repeat([size[axis] for size in sizes], list(sizes.values()))
        panels[0, 1].hist(sides, bins=_BARS, histtype="step", label=name)
    panels[0, 1].set_title("sides, px")
    panels[0, 1].legend()
    panels[0, 2].hist(np.array(num_bytes) / 1000, bins=_BARS)
    panels[0, 2].set_title("kB an image")
    for panel, name in zip(panels[1], ("lightness", "haematoxylin", "eosin"), strict=True):
        for source, rows in sorted(figures.items()):
            values = np.array(rows)[:, _NAMES.index(name)]
            panel.hist(values, bins=_BARS, histtype="step", density=True, label=source)
        panel.set_title(f"{name}, mean of an image, by source")
        panel.legend(fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    plt.close(figure)
    write_bytes(path, stream.getvalue())
