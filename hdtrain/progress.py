"""One progress display for every long piece of work: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
LINE_EVERY_SEC = 10.0


class Progress:
    """Counts `unit`s up to `total`, with rate and time left. `enabled=False` (ranks other than 0) is silent."""

    def __init__(self, title: str, total: int, unit: str = "img", done: int = 0, enabled: bool = True):
        self.title, self.total, self.unit, self.done, self.enabled = title, total, unit, done, enabled
        self._started, self._initial, self._last = time.monotonic(), done, time.monotonic()
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm  # the command line starts without it

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=title, dynamic_ncols=True, smoothing=0.1)

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def update(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is shown behind them."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif self.enabled and time.monotonic() - self._last >= LINE_EVERY_SEC:
            self._last = time.monotonic()
            left = max(0, self.total - self.done) / max(self.rate, 1e-9)  # `total` may be a guess
            share = f"{self.done:,}/{self.total:,} {self.unit}"
            print(f"{self.title}: {share}, {self.rate:,.1f} {self.unit}/s, {left:.0f} s left {note}", file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def track(items: Iterable[T], total: int, title: str, unit: str = "img") -> Iterator[T]:
    """Pass `items` on and count them."""
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.update(1)
