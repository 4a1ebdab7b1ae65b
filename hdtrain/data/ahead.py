"""Work that will be wanted soon, done beside what is done now."""

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
IDLE_SEC = 5.0


class Ahead(Generic[Item]):
    """Does `action(item)` for the items that were wanted last, the first of them first.

    Its threads are daemons, so that the end of a run does not wait for what nobody needs any more; they end when there
    is nothing to do.
    """

    def __init__(self, action: Callable[[Item], None], threads: int):
        self._action, self._threads = action, threads
        self._pending: list[Item] = []
        self._begun: set[Item] = set()
        self._running = 0
        self._changed = threading.Condition()

    def want(self, items: Iterable[Item]) -> None:
        """These and no others; what was begun since it was first wanted is not done again."""
        wanted = list(items)
        with self._changed:
            self._begun.intersection_update(wanted)
            self._pending = [item for item in wanted if item not in self._begun]
            self._changed.notify_all()
            missing = min(self._threads - self._running, len(self._pending))
            self._running += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._work, daemon=True, name="ahead").start()

    def _work(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._action(item)
            except BaseException:
                self._end()
                raise

    def _next(self) -> Item | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._pending, IDLE_SEC):
                self._end()
                return None
            item = self._pending.pop(0)
            self._begun.add(item)
            return item

    def _end(self) -> None:
        with self._changed:
            self._running -= 1
