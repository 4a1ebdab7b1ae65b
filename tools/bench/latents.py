"""B4: latents from record shards in one thread, against webdataset with a `.npy` a latent.

*Streamed* reads in the order of the file. *Gathered* is training: positions of a shuffled order, in batches. Both end
with the bytes in arrays of the process's own. Two bare loops without keys, labels and error handling show the limits:
copying the same bytes inside memory, and out of memory maps of the same shards.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import webdataset

from bench.compare import Contestant, Goal, Outcome, OutputsDifferError, Spread, Timed, compare
from hdtrain.data.latents import TrainingLatents
from hdtrain.formats.manifest import FieldSpec, Manifest
from hdtrain.formats.records import RecordReader, write_record_shard
from hdtrain.formats.shards import shard_entry

BATCH = 64
PER_MEMBER = 256
SHARDS = 4
STREAMED, GATHERED = "ours streamed", "ours gathered"
COPIED, MAPPED = "bare copy in memory, gathered", "bare copy out of memory maps, gathered"
WEBDATASET, OUR_SHARDS = "wds .npy", "wds on our record shards"
SHAPES = {
    "mean and std of 3×64×64": (2, 3, 64, 64),
    "mean of 3×64×64": (1, 3, 64, 64),
    "mean and std of 4×32×32": (2, 4, 32, 32),
    "mean of 4×16×16": (1, 4, 16, 16),
}
"""What a record may be; the first is what `hdtrain encode` writes for 256×256 images and the KL-f4 autoencoder."""
Batches = Iterable[tuple[Sequence[str], np.ndarray]]


@dataclass(frozen=True)
class Stored:
    """The same latents in memory, as record shards and as webdataset would have them."""

    records: np.ndarray
    keys: list[str]
    folder: Path
    manifest: Manifest
    npy_shards: list[str]
    seed: int


def store(num: int, shape: tuple[int, ...], folder: Path, seed: int) -> Stored:
    """Draw `num` fp16 records and write them both ways."""
    records = np.random.default_rng(seed).standard_normal((num, *shape), np.float32).astype(np.float16)
    keys = [f"latent-{i:08d}" for i in range(num)]
    entries, npy_shards = [], []
    for number, part in enumerate(np.array_split(np.arange(num), SHARDS)):
        path = folder / "shards" / f"latents-{number:06d}.tar"
        write_record_shard(path, records[part], [keys[i] for i in part], [int(i) % 9 for i in part], PER_MEMBER)
        entries.append(shard_entry(path, folder))
        npy_shards.append(str(folder / f"npy-{number:06d}.tar"))
        with webdataset.TarWriter(npy_shards[-1], mtime=0) as writer:
            for i in part:
                writer.write({"__key__": keys[i], "npy": records[i]})
    fields = {"moments": FieldSpec(dtype="float16", shape=list(shape))}
    manifest = Manifest(kind="latents", stage="encode", fingerprint="bench", commit="", fields=fields, shards=entries)
    return Stored(records, keys, folder, manifest, npy_shards, seed)


def streamed(stored: Stored) -> Batches:
    """Every record in the order of its shard, a member at a time."""
    for shard in stored.manifest.shards:
        reader, first = RecordReader(stored.folder / shard.name), 0
        for array in reader.arrays():
            yield reader.sidecar.keys[first : first + len(array)], array
            first += len(array)
        reader.close()


def gathered(stored: Stored, source: TrainingLatents) -> Batches:
    """An epoch of `hdtrain.data.latents.TrainingLatents`, with keys and labels."""
    for first in range(0, len(stored.keys), BATCH):
        batch = source.batch(range(first, min(first + BATCH, len(stored.keys))))
        yield batch.keys, batch.moments


def copied(stored: Stored) -> Batches:
    """The same bytes out of one array in memory, at random places: no file, no keys."""
    order = np.random.default_rng(stored.seed).permutation(len(stored.keys))
    for first in range(0, len(order), BATCH):
        yield [], stored.records[order[first : first + BATCH]]


def memory_maps(stored: Stored) -> list[np.ndarray]:
    """Every record as a view of a memory map of its shard."""
    rows: list[np.ndarray] = []
    for shard in stored.manifest.shards:
        path = stored.folder / shard.name
        for member in RecordReader(path).sidecar.records:
            mapped = np.memmap(path, member["dtype"], "r", member["offset"], tuple(member["shape"]))
            rows += list(np.asarray(mapped))
    return rows


def copied_from(rows: Sequence[np.ndarray], stored: Stored) -> Batches:
    """The same bytes out of `rows`, one after the other."""
    order = np.random.default_rng(stored.seed).permutation(len(rows))
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        batch = np.empty((len(part), *rows[0].shape), rows[0].dtype)
        for place, index in zip(batch, part.tolist(), strict=True):
            place[...] = rows[index]
        yield [stored.keys[index] for index in part], batch


def with_webdataset(stored: Stored) -> Batches:
    """A `.npy` a latent, decoded and batched by webdataset, in its order."""
    pipeline = webdataset.WebDataset(stored.npy_shards, shardshuffle=False).decode().to_tuple("__key__", "npy")
    yield from pipeline.batched(BATCH)


def our_shards_with_webdataset(stored: Stored) -> Batches:
    """Our shards as webdataset reads them: many latents to a `.npy`."""
    urls = [str(stored.folder / shard.name) for shard in stored.manifest.shards]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode()
    for sample in pipeline:
        yield sample["records.json"]["keys"], sample["records.npy"]


def same_records(who: str, batches: Batches, stored: Stored) -> None:
    """Compare an epoch with what was stored.

    Raises:
        OutputsDifferError: a record differs, is missing, or comes twice.
    """
    expected = dict(zip(stored.keys, stored.records, strict=True))
    for keys, arrays in batches:
        for key, array in zip(keys, arrays, strict=True):
            if not np.array_equal(np.asarray(array), expected.pop(key, None)):
                raise OutputsDifferError(f"{who}: {key} is not what was stored, or came twice")
    if expected:
        raise OutputsDifferError(f"{who}: {len(expected)} of {len(stored.keys)} records did not come")


def _timed(read: Callable[[], Batches], passes: int) -> Timed:
    """Seconds a pass."""
    started = time.perf_counter()
    for _ in range(passes):
        for _ in read():
            pass
    return Timed((time.perf_counter() - started) / passes)


def run(num: int, folder: Path, seed: int, rounds: int) -> Iterator[Outcome]:
    """A contest for each of `SHAPES`, over `num` records.

    Raises:
        OutputsDifferError: a reader gives another record than was stored.
    """
    for number, (what, shape) in enumerate(SHAPES.items()):
        stored = store(num, shape, folder / f"latents-{number}", seed)
        outcome = _contest(what, stored, rounds)
        if number == 0:
            rates = outcome.rates
            outcome.goals += [
                Goal(STREAMED, Spread.of(rates[STREAMED]), 50_000, "records/s"),
                Goal(GATHERED, Spread.of(rates[GATHERED]), 250_000, "records/s"),
            ]
        yield outcome


def _contest(what: str, stored: Stored, rounds: int) -> Outcome:
    source, rows = TrainingLatents([(stored.folder, stored.manifest)], stored.seed), memory_maps(stored)
    readers: dict[str, tuple[Callable[[], Batches], int]] = {
        STREAMED: (lambda: streamed(stored), 4),
        GATHERED: (lambda: gathered(stored, source), 4),
        COPIED: (lambda: copied(stored), 4),
        MAPPED: (lambda: copied_from(rows, stored), 4),
        OUR_SHARDS: (lambda: our_shards_with_webdataset(stored), 2),
        WEBDATASET: (lambda: with_webdataset(stored), 1),
    }
    for name, (read, _) in readers.items():
        if name != COPIED:
            same_records(name, read(), stored)
    contestants = [Contestant(name, partial(_timed, read, passes)) for name, (read, passes) in readers.items()]
    outcome = compare(f"latents: {what}", "records/s", len(stored.keys), contestants, rounds)
    size = stored.records[0].nbytes
    per_sec = {name: Spread.of(values).median * size / 1e9 for name, values in outcome.rates.items()}
    outcome.notes += [
        f"{size / 1024:g} KiB a record, fp16; one thread; out of the system's cache; batches of {BATCH}",
        "GB/s: " + ", ".join(f"{name} {rate:.3g}" for name, rate in per_sec.items()),
        *(f"{name} / {WEBDATASET}: {outcome.ratio(name, WEBDATASET).median:.3g} ×" for name in (STREAMED, GATHERED)),
    ]
    return outcome
