"""A few threads that share out the samples of a batch; decoding and reading let go of the GIL."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


class Threads:
    """`count` threads."""

    def __init__(self, count: int):
        self.count = count
        self._pool = ThreadPoolExecutor(count, "decode")

    def each(self, action: Callable[[int], None], number: int) -> None:
        """`action(i)` for every i below `number`, whichever thread is free takes the next; the first error is raised.

        One task a thread and not one a sample: a task costs as much as a tenth of a decoded image.
        """
        indices = itertools.count()

        def work() -> None:
            while (index := next(indices)) < number:
                action(index)

        tasks = [self._pool.submit(work) for _ in range(min(self.count, number))]
        wait(tasks)
        for task in tasks:
            task.result()

    def close(self) -> None:
        """End the threads when they have done what they are at."""
        self._pool.shutdown(wait=False)
