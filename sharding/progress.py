"""Progress on stderr: a line that rewrites itself on a terminal, else one line every ten seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_SEC = 10.0
REDRAW_EVERY_SEC = 0.2


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass `items` on and say how many of `total` are done, how fast, and how long the rest takes."""
    terminal = sys.stderr.isatty()
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= (REDRAW_EVERY_SEC if terminal else LOG_EVERY_SEC):
            shown, rate = now, done / (now - start)
            line = f"{what}: {done}/{total}, {rate:.0f} images/s, {(total - done) / rate:.0f} s left"
            print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
