"""The resolution of slides' images as they are embedded. A data set's index has that of the input, before resizing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hdtrain.data.exactly_once import ShardByShard
from hdtrain.data.tile_places import NONE, TilePlaces
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir

SAME_MPP = 1.02
"""Scanners of one nominal resolution differ by less than this factor."""


def slide_mpp(places: TilePlaces, shards: ShardByShard, resolution: int | None) -> dict[str, float | None]:
    """Micrometres a pixel by slide, from what the first image of each says of itself; None where it doesn't know.

    Args:
        places: of the images; all of a slide are taken to have been cut alike.
        shards: of the same data sets.
        resolution: height and width that images are brought to before they are embedded; None: as they are.

    Raises:
        ShardError: a shard is missing, damaged, or cannot be downloaded.
    """
    stored = np.flatnonzero((places.slide_codes != NONE) & (places.shard != NONE))
    codes, first = np.unique(places.slide_codes[stored], return_index=True)
    rows = stored[first]
    found: dict[str, float | None] = {}
    for number, shard in shards.each(np.unique(places.shard[rows]).tolist()):
        position = {key: i for i, key in enumerate(shard.reader.sidecar.keys)}
        for code, row in zip(codes[places.shard[rows] == number], rows[places.shard[rows] == number], strict=True):
            meta = shard.reader.meta(position[places.table["key"][int(row)].as_py()])
            mpp, width, height = (meta.get(name) for name in ("mpp", "width", "height"))
            if mpp and resolution:
                mpp = mpp * width / resolution if width and width == height else None
            found[places.slides[code]] = mpp
    return found


def common_mpp(datasets: Sequence[tuple[Path, Manifest]]) -> float | None:
    """Micrometres a pixel of all that was embedded, the median of slides' values; None where one doesn't know or they
    differ.

    Args:
        datasets: runs of kind `embeddings` or `grids`.
    """
    found: list[float | None] = []
    for path, manifest in datasets:
        if manifest.kind == "embeddings":
            found += pq.read_table(RunDir(path).index, columns=["mpp"])["mpp"].unique().to_pylist()
        else:
            found.append(manifest.info.get("mpp"))
    known = [mpp for mpp in found if mpp is not None]
    if len(known) < len(found) or not known or max(known) > SAME_MPP * min(known):
        return None
    return float(np.median(known))
