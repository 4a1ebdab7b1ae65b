"""How a process tells the launcher why it ended. No torch here.

torchrun knows success and failure only, so a launcher that uses it names a file in HDTRAIN_OUTCOME: there the first
rank to fail writes `{"code": …, "message": …}` instead of printing.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

OUTCOME_VARIABLE = "HDTRAIN_OUTCOME"


def tell_outcome(code: int, message: str) -> None:
    """Say what went wrong, once, to whoever listens: the launcher, or else stderr."""
    outcome = os.environ.get(OUTCOME_VARIABLE)
    if outcome is None:
        if message:
            print(f"error: {message}", file=sys.stderr, flush=True)
    elif code:
        with contextlib.suppress(FileExistsError), Path(outcome).open("x") as stream:  # of several the first counts
            json.dump({"code": code, "message": message}, stream)
