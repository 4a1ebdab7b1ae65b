"""B3: shards to batches of pixels with two threads or worker processes, against webdataset's pipelines.

A contestant is set up anew each round. The first batches are not timed, so starting workers costs nobody anything. All
shuffle; all read out of the system's cache.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torchvision.transforms.functional import to_tensor

from bench.compare import Contestant, Outcome, OutputsDifferError, Timed, compare
from bench.samples import SIDE_PX, Sample
from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.prefetch import Prefetcher
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardWriter, shard_entry

WORKERS = 2
MAX_BATCH = 64
SHARDS = 8
WARM_UP = 8
"""Batches before the clock starts; webdataset's two workers prepare four ahead."""
OURS, DOCUMENTED, RGB8, SIMPLEJPEG = "ours", "wds documented", "wds uint8", "wds + simplejpeg"
Batches = Iterable[tuple[Sequence[str], np.ndarray]]
"""Keys and images, uint8 NHWC or (webdataset's documented way) float32 NCHW in [0, 1]."""


def write_shards(samples: Sequence[Sample], folder: Path) -> Manifest:
    """The samples as a published data set of `SHARDS` shards."""
    entries = []
    for number, part in enumerate(np.array_split(np.arange(len(samples)), SHARDS)):
        path = folder / "shards" / f"shard-{number:06d}.tar"
        with ShardWriter(path) as writer:
            for sample in (samples[i] for i in part):
                writer.add(sample.key, "jpg", sample.jpg, sample.meta, sample.label)
        entries.append(shard_entry(path, folder))
    classes = sorted({sample.meta["label"] for sample in samples})
    return Manifest(kind="images", stage="shard", fingerprint="bench", commit="", shards=entries, classes=classes)


class Reading:
    """The readers of B3 over one data set; each gives batches, of one epoch or without end."""

    def __init__(self, folder: Path, manifest: Manifest, seed: int):
        self.folder, self.manifest, self.seed = folder, manifest, seed
        self.batch_size = max(1, min(MAX_BATCH, manifest.num_samples // SHARDS))
        self.urls = [str(folder / shard.name) for shard in manifest.shards]

    def ours(self, endless: bool) -> Batches:
        """As training reads: `TrainingImages` behind a `Prefetcher`, two decoding threads, no cache of pixels."""
        config = ReaderConfig(resolution=SIDE_PX, threads=WORKERS, cache_bytes=0, flips=False)
        source = TrainingImages([(self.folder, self.manifest)], config, self.seed)
        yield from ((batch.keys, batch.images) for batch in Prefetcher(source.batch, self._positions(endless)))

    def _positions(self, endless: bool) -> Iterator[range]:
        num, first = self.manifest.num_samples, 0
        while endless or first < num:
            last = first + self.batch_size if endless else min(first + self.batch_size, num)
            yield range(first, last)
            first = last

    def documented(self, endless: bool) -> Batches:
        """As webdataset's README has it: `decode("pil")`, `to_tuple`, `map` with torchvision's `ToTensor`."""
        return self._loader(endless, lambda pipeline: pipeline.decode("pil"), to_tensor)

    def rgb8(self, endless: bool) -> Batches:
        """The same with `decode("rgb8")`: arrays of uint8 like ours, a quarter of the bytes between processes."""
        return self._loader(endless, lambda pipeline: pipeline.decode("rgb8"), _as_it_is)

    def simplejpeg(self, endless: bool) -> Batches:
        """The same with our decoder."""
        decoder = webdataset.autodecode.handle_extension("jpg", simplejpeg.decode_jpeg)
        return self._loader(endless, lambda pipeline: pipeline.decode(decoder), _as_it_is)

    def _loader(self, endless: bool, decode: Callable, prepare: Callable) -> Batches:
        pipeline = webdataset.WebDataset(self.urls, shardshuffle=100, seed=self.seed)
        if endless:
            pipeline = pipeline.repeat()
        pipeline = decode(pipeline.shuffle(1000)).to_tuple("__key__", "jpg", "json")
        pipeline = pipeline.map_tuple(_as_it_is, prepare, lambda meta: meta["class_index"])
        loader = torch.utils.data.DataLoader(pipeline.batched(self.batch_size), num_workers=WORKERS, batch_size=None)
        for keys, images, _ in loader:
            yield keys, images.numpy()


def _as_it_is(value: object) -> object:
    return value


def _timed(read: Callable[[bool], Batches], num: int, batch_size: int) -> Timed:
    """Seconds for `num` images, from as many batches as hold them; webdataset's epochs end with smaller ones."""
    running = iter(read(True))
    for _ in islice(running, WARM_UP):
        pass
    started = time.perf_counter()
    seen = sum(len(keys) for keys, _ in islice(running, max(1, num // batch_size)))
    seconds = time.perf_counter() - started
    return Timed(seconds * num / seen)


def same_pixels(who: str, batches: Batches, samples: Sequence[Sample]) -> None:
    """Compare an epoch with what Pillow decodes.

    Raises:
        OutputsDifferError: a pixel differs, or a sample is missing or comes twice; says which.
    """
    jpg = {sample.key: sample.jpg for sample in samples}
    decoded: dict[int, np.ndarray] = {}
    seen: set[str] = set()
    for key, image in _as_uint8(batches):
        if key in seen or key not in jpg:
            raise OutputsDifferError(f"{who}: {key} came twice or is not in the data set")
        seen.add(key)
        if id(jpg[key]) not in decoded:
            decoded[id(jpg[key])] = np.asarray(Image.open(io.BytesIO(jpg[key])))
        if not np.array_equal(image, decoded[id(jpg[key])]):
            raise OutputsDifferError(f"{who}: {key} is not what Pillow decodes")
    if len(seen) != len(jpg):
        raise OutputsDifferError(f"{who}: {len(jpg) - len(seen)} of {len(jpg)} samples did not come")


def _as_uint8(batches: Batches) -> Iterator[tuple[str, np.ndarray]]:
    for keys, images in batches:
        if images.dtype != np.uint8:
            images = np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        yield from zip(keys, images, strict=True)


def run(samples: Sequence[Sample], folder: Path, seed: int, rounds: int) -> Outcome:
    """The contest, over shards written below `folder`.

    Raises:
        OutputsDifferError: a reader's images are not bit for bit what Pillow decodes, or not each once an epoch.
    """
    reading = Reading(folder / "read", write_shards(samples, folder / "read"), seed)
    readers = {
        OURS: reading.ours,
        DOCUMENTED: reading.documented,
        RGB8: reading.rgb8,
        SIMPLEJPEG: reading.simplejpeg,
    }
    for name, read in readers.items():
        same_pixels(name, read(False), samples)
    num, batch_size = len(samples), reading.batch_size
    contestants = [Contestant(name, partial(_timed, read, num, batch_size)) for name, read in readers.items()]
    outcome = compare("read and decode: JPEG shards to batches", "img/s", num, contestants, rounds)
    outcome.expect(OURS, DOCUMENTED, 4.5)
    outcome.expect(OURS, SIMPLEJPEG, 1.9)
    outcome.notes += [
        f"ours / {RGB8}: {outcome.ratio(OURS, RGB8).median:.3g} ×",
        f"{WORKERS} threads (ours) or worker processes (wds), batches of {batch_size} at {SIDE_PX}×{SIDE_PX}, "
        f"{SHARDS} shards in the system's cache, shuffled",
        "wds documented: decode('pil') and ToTensor, so float32; wds uint8: decode('rgb8')",
        "all bit-identical to Pillow over an epoch, every sample once",
    ]
    return outcome
