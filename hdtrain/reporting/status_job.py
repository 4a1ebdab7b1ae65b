"""What is known of a run's job: from its submission, and from what the queue says of it. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hdtrain.formats.job_state import JobState


@dataclass(frozen=True)
class Answers:
    """What the queues say."""

    elements: Mapping[str, JobState] = field(default_factory=dict)
    """By id, of the jobs that their queue still knows."""
    unreachable: frozenset[str] = frozenset()
    """Names of queues that could not be asked."""


@dataclass
class JobStatus:
    """The newest job of a run."""

    queue: str
    ids: list[str]
    submission: str
    """Its folder."""
    submitted: float
    """Unix seconds."""
    elements: dict[str, int]
    """How many are waiting, running, ended, failed or cancelled; what the queue doesn't know any more is left out."""
    requeued: int = 0
    """Times, all elements together."""
    waits_for: list[str] = field(default_factory=list)
    """Runs that it waits for, or waited for in vain."""
    word: str | None = None
    """The queue's own: PENDING, TIMEOUT, …"""
    reason: str | None = None
    begins: str | None = None
    nodes: list[str] = field(default_factory=list)
    active: bool = False
    """It waits or runs in the queue."""
    cancelled: bool = False
    """`hdtrain cancel` was given; a running one saves then, and ends."""
    reachable: bool = True
    """The queue could be asked."""
