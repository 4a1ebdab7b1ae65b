"""Prepare the next batches in threads while the current one trains."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


class Prefetcher(Generic[T]):
    """Iterate `load(item)` for every item, in order, some ahead; `wait_sec` is how long the consumer stood waiting.

    Args:
        load: makes a batch; called by two threads, so that the next batch begins while the last samples of one are
            still being decoded.
        items: what `load` takes; drawn by the consumer.
        depth: batches that are ready or in work while one is used.
    """

    def __init__(self, load: Callable[[P], T], items: Iterable[P], depth: int = 3):
        self.wait_sec = 0.0
        self._load, self._items = load, iter(items)
        self._pool = ThreadPoolExecutor(2, "prefetch")
        self._waiting: deque[Future[T]] = deque()
        self._begin(depth)

    def _begin(self, count: int) -> None:
        self._waiting.extend(self._pool.submit(self._load, item) for item in islice(self._items, count))

    def __iter__(self) -> Iterator[T]:
        try:
            while self._waiting:
                started = time.monotonic()
                batch = self._waiting.popleft().result()
                self.wait_sec += time.monotonic() - started
                self._begin(1)
                yield batch
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
