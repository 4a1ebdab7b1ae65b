"""Samples that cannot be used: named, counted by reason, and too many of them an error."""

import math
import threading
from collections import Counter
from pathlib import Path

from hdtrain.errors import DataError


class BrokenSamples:
    """The broken samples of one run. Safe to share between threads.

    Args:
        num_samples: samples of the whole data set.
        max_failed_share: more than this share of them is an error. One must be whole in any case.
    """

    def __init__(self, num_samples: int, max_failed_share: float):
        self.num_samples, self.max_failed_share = num_samples, max_failed_share
        self._found: dict[tuple[Path, str], str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    @property
    def limit(self) -> int:
        """How many there may be."""
        return min(math.floor(self.max_failed_share * self.num_samples + 1e-9), self.num_samples - 1)

    def by_reason(self, shard: Path | None = None) -> dict[str, int]:
        """Counts, the most frequent first; of one shard, or of all."""
        return dict(Counter(why for (path, _), why in self._found.items() if shard in (None, path)).most_common())

    def add(self, shard: Path, key: str, error: DataError) -> None:
        """Count a sample once, however often it is met, and say so at the first time.

        Raises:
            DataError: there are more than `max_failed_share` allows.
        """
        with self._lock:
            new = (shard, key) not in self._found
            self._found[shard, key] = reason_of(error)
            count = len(self._found)
        if new:
            print(f"warning: skipped {shard}: {key}: {error}")
        if count > self.limit:
            raise self.too_many(count, f"the last was {shard}: {key}: {error}")

    def too_many(self, count: int, last: str) -> DataError:
        """The error for `count` of them."""
        return DataError(
            f"{count} broken images of {self.num_samples}, more than max_failed_share {self.max_failed_share:g} "
            f"allows; {last}; run `hdtrain verify` on the shards"
        )


def reason_of(error: DataError) -> str:
    """What an error says before its details."""
    return str(error).partition(":")[0]
