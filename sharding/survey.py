"""First pass: look at every input once and decide on it, before anything is planned or written.

After it every sample is a range of bytes: of the source's own file where its bytes are stored as they are, else of a
*spool* beside the part, where the survey left what it had to encode. So a broken image never leaves a gap in a shard,
a data set that is refused leaves nothing behind, and the writers need to know nothing of layouts.

Every unit is surveyed by whoever claims it. A unit's part is kept by a run that goes on if its input is still the same.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hdtrain.formats.atomic import atomic_file, sha256_bytes, write_bytes
from sharding.duplicates import DIGEST_BYTES, canonical_digest, perceptual_hash
from sharding.images import MIN_SIDE_PX, Encoding, Pixels, UnusableError, decode
from sharding.inputs import ByteRange, Input, key_hash, make_key
from sharding.readers.base import Reader, Unit
from sharding.table import BACKGROUND, OK, REJECTED, write_part
from sharding.tiles import tissue_share

T = TypeVar("T")
R = TypeVar("R")
_CHUNK, _CHUNKS_AHEAD = 8, 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one input."""

    status: int
    reason: str | None = None
    ext: str | None = None
    """Under which its bytes are stored."""
    width: int = 0
    height: int = 0
    content: bytes | None = None
    pixels: bytes | None = None
    symmetry: int = 0
    look: int | None = None
    encoded: bytes | None = None
    """What to store, where it is not what lies in the source."""


@dataclass(frozen=True)
class Surveyor:
    """Looks at inputs; the same input gives the same verdict in every process."""

    encoding: Encoding
    looks: bool
    """Compute perceptual hashes too."""
    work: Path
    pool: ThreadPoolExecutor
    writer: str = ""
    """As in `atomic_file`."""

    def part(self, number: int, reader: Reader, unit: Unit) -> Path:
        """Where the unit's part belongs. The name holds what it depends on, the state of its input included."""
        config = reader.source.config.model_dump(mode="json", exclude={"expect", "split"})
        asked = [asdict(self.encoding), self.looks, config, asdict(unit), reader.state(unit)]
        return self.work / f"survey-{number:06d}-{sha256_bytes(json.dumps(asked, sort_keys=True).encode())[:16]}.arrow"

    def survey(self, path: Path, source: int, reader: Reader, unit: Unit, tick: Callable[[], None]) -> None:
        """Judge every input of a unit and publish its part, and before it the spool."""
        with ExitStack() as stack:
            rows = self._rows(path.with_suffix(".spool"), stack, source, reader, unit, tick)
            write_part(path, rows, self.writer)

    def _rows(
        self, spool: Path, stack: ExitStack, source: int, reader: Reader, unit: Unit, tick: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """The unit's rows; the spool is opened in `stack` when there is something to leave there."""
        stream, offset = None, 0
        for item, verdict in ahead(self.pool, self._judge, reader.read(unit)):
            row = _row(item, verdict, source, reader.source.name)
            if verdict.encoded is not None:
                stream = stream or stack.enter_context(atomic_file(spool, self.writer))
                stream.write(verdict.encoded)
                row |= {
                    "file": os.fsencode(spool.name),
                    "offset": offset,
                    "size": len(verdict.encoded),
                    "deflated": False,
                }
                offset += len(verdict.encoded)
            yield row
            tick()
        stack.close()  # the spool is published before its part

    def _judge(self, item: Input) -> tuple[Input, Verdict]:
        return item, judge(item, self.encoding, self.looks)


def judge(item: Input, encoding: Encoding, looks: bool = False) -> Verdict:
    """Decode one input and decide on it."""
    if item.is_background:
        return Verdict(BACKGROUND)
    try:
        content = item.content.load()
        if isinstance(content, bytes):
            decoded = decode(content, encoding.alpha)
            pixels, ext = decoded.pixels, decoded.ext
        else:
            pixels, ext = content, None
        _check_size(pixels)
    except UnusableError as error:
        return Verdict(REJECTED, str(error))
    except OSError as error:
        return Verdict(REJECTED, f"unreadable: {error.strerror or error}")
    height, width, _ = pixels.shape
    if item.min_tissue > 0 and tissue_share(pixels) < item.min_tissue:
        return Verdict(BACKGROUND, None, ext, width, height)
    encoded = None
    if not isinstance(content, bytes) or not encoding.keeps(ext):
        ext, stored = encoding.encode(pixels)
        encoded = stored
    else:
        stored = content
        if not isinstance(item.content, ByteRange):
            encoded = stored
    digest, symmetry = canonical_digest(pixels)
    look = perceptual_hash(pixels) if looks else None
    return Verdict(OK, None, ext, width, height, content_digest(stored), digest, symmetry, look, encoded)


def _check_size(pixels: Pixels) -> None:
    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        raise UnusableError(f"smaller than {MIN_SIDE_PX} px")


def content_digest(data: bytes) -> bytes:
    """Tells the bytes to store from any others: the first half of their sha256."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _row(item: Input, verdict: Verdict, source: int, source_name: str) -> dict[str, Any]:
    key = make_key(source_name, item.stem, item.tail)
    row = {name: getattr(item, name) for name in ("path", "label", "slide", "patient", "x", "y", "mpp")}
    row |= {name: getattr(verdict, name) for name in ("status", "reason", "ext", "width", "height", "symmetry", "look")}
    row |= {"key": key, "key_hash": key_hash(key), "source": source}
    row |= {"content": verdict.content or bytes(DIGEST_BYTES), "pixels": verdict.pixels or bytes(DIGEST_BYTES)}
    if isinstance(item.content, ByteRange):
        place = item.content
        row |= {"file": os.fsencode(place.path), "offset": place.offset, "size": place.size, "deflated": place.deflated}
    return row


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`pool.map` that takes only a bounded number of items before their results are asked for, a few at a time."""

    def run(chunk: list[T]) -> list[R]:
        return [function(item) for item in chunk]

    waiting: deque[Future[list[R]]] = deque()
    remaining = iter(items)
    try:
        while chunk := list(islice(remaining, _CHUNK)):
            waiting.append(pool.submit(run, chunk))
            if len(waiting) > _CHUNKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def list_units(readers: Sequence[Reader], path: Path, writer: str = "") -> None:
    """Publish the units of all sources: `[source, path, start, stop, count]`; `writer` as in `atomic_file`."""
    units = [[i, *asdict(unit).values()] for i, reader in enumerate(readers) for unit in reader.units()]
    write_bytes(path, json.dumps(units, separators=(",", ":")).encode(), writer)


def read_units(path: Path) -> list[tuple[int, Unit]]:
    """What `list_units` published: (source, unit)."""
    return [(source, Unit(*rest)) for source, *rest in json.loads(path.read_bytes())]
