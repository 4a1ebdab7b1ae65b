"""Who this process is among the ranks, from the environment that torchrun (or a SLURM launcher) sets. No torch here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """Which of several machines this is, where each starts ranks of its own."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class World:
    """Rank, world size and local rank of this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """RANK, WORLD_SIZE and LOCAL_RANK; a single process where they are not set."""
        return cls(
            int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        )

    @property
    def is_main(self) -> bool:
        """Rank 0 alone writes manifests, metrics and progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of `items`, every `size`-th: exactly-once stages split their input shards with it."""
        return items[self.rank :: self.size]
