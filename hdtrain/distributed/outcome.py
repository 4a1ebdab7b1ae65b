"""How a process tells the launcher why it ended. No torch here.

torchrun knows success and failure only, so a launcher that uses it names a file in HDTRAIN_OUTCOME: there the first
rank to fail writes `{"code": …, "message": …}` instead of printing.
"""

import json
import os
import sys
import time
from pathlib import Path

OUTCOME_VARIABLE = "HDTRAIN_OUTCOME"
PATIENCE_SEC = 2.0


def tell_outcome(code: int, message: str) -> None:
    """Say what went wrong, once, to whoever listens: the launcher, or else stderr."""
    outcome = os.environ.get(OUTCOME_VARIABLE)
    if outcome is not None and not code:
        return
    try:
        if outcome is not None:
            with Path(outcome).open("x") as stream:
                json.dump({"code": code, "message": message}, stream)
            return
    except FileExistsError:  # of several the first counts
        return
    except OSError:  # the disk is full: the file is there, and empty
        pass
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)


def told_by_another() -> bool:
    """Whether another rank has told why the run ends. Its connections may close a moment before it says so."""
    outcome = os.environ.get(OUTCOME_VARIABLE)
    end = time.monotonic() + PATIENCE_SEC
    while outcome and not Path(outcome).exists() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(outcome) and Path(str(outcome)).exists()
