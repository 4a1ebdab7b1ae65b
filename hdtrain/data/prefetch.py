"""Prepare the next batches in a thread while the current one trains."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


class Prefetcher(Generic[T]):
    """Iterate `load(item)` for every item, `depth` ahead; `wait_sec` is how long the consumer stood waiting."""

    def __init__(self, load: Callable[[P], T], items: Iterable[P], depth: int = 2):
        self.wait_sec = 0.0
        self._queue: queue.Queue[tuple[str, object]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(load, items), daemon=True, name="prefetch")
        self._thread.start()

    def _produce(self, load: Callable[[P], T], items: Iterable[P]) -> None:
        try:
            for item in items:
                self._put("item", load(item))
                if self._closed.is_set():
                    return
            self._put("end", None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put("error", error)

    def _put(self, kind: str, value: object) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put((kind, value), timeout=0.2)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                started = time.monotonic()
                kind, value = self._queue.get()
                self.wait_sec += time.monotonic() - started
                if kind == "end":
                    return
                if kind == "error":
                    raise value  # type: ignore[misc]
                yield value  # type: ignore[misc]
        finally:
            self._closed.set()
