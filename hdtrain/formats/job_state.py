"""What a queue says of a job. Plain data: queues give it, `hdtrain status` tells it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class JobState:
    """What the queue says of one element of a job."""

    kind: Literal["waiting", "running", "ended", "failed", "cancelled"]
    word: str
    """The queue's own: PENDING, NODE_FAIL, …"""
    reason: str = ""
    """Why it waits or failed, in the queue's words."""
    nodes: str = ""
    begins: str = ""
    """When it is expected to begin, where the queue says so."""
    code: str = ""
    """Exit code, where the queue says so."""
