"""Prefetching: everything, in order, errors included, and no thread left behind."""

import threading
import time

import pytest

from hdtrain.data.prefetch import Prefetcher


def running() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def settled(count: int) -> bool:
    end = time.monotonic() + 5
    while running() != count and time.monotonic() < end:
        time.sleep(0.02)
    return running() == count


def test_items_come_in_order_and_the_waiting_is_measured():
    def load(item: int) -> int:
        time.sleep(0.02)
        return item * item

    prefetcher = Prefetcher(load, range(5))
    assert list(prefetcher) == [0, 1, 4, 9, 16]
    assert 0.05 < prefetcher.wait_sec < 5
    assert settled(0)


def test_an_error_of_the_loader_reaches_the_consumer_after_the_items_before_it():
    stream = iter(Prefetcher(lambda item: 6 // item, [3, 2, 0, 1]))
    assert [next(stream), next(stream)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_a_consumer_that_leaves_ends_the_thread():
    stream = iter(Prefetcher(lambda item: item, range(10**9)))
    assert next(stream) == 0
    stream.close()
    assert settled(0)
