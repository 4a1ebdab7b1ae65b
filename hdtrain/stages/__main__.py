"""`python -m hdtrain.stages STAGE RUN_DIR`: run one prepared stage in this process (or as one rank of torchrun).

Exit codes: 0 published, 2 a mistake of the user's making (one message on stderr), 3 stopped after saving.
torchrun knows success and failure only, so a launcher that uses it names a file in HDTRAIN_OUTCOME: there the first
rank to fail writes `{"code": …, "message": …}` instead of printing.
"""

import contextlib
import importlib
import os
import sys
from pathlib import Path

from hdtrain.config.stages import STAGES
from hdtrain.distributed.outcome import OUTCOME_VARIABLE, tell_outcome, told_by_another
from hdtrain.distributed.processes import die_with_parent
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.errors import HdtrainError, explain_disk
from hdtrain.formats.provenance import record_end, record_start
from hdtrain.stages.base import StageContext

MISTAKE = 2
STOPPED = STOPPED_EXIT_CODE


def run_stage(stage: str, directory: Path) -> int:
    """Run a prepared stage; return the exit code."""
    context, message = None, ""
    try:
        config, context = StageContext.open(stage, directory)
        if context.world.is_main:
            record_start(context.run, stage, context.fingerprint, context.world.size)
        importlib.import_module(STAGES[stage].module).run(config, context)
        code, status = 0, "done"
    except HdtrainError as error:
        message = str(error)
        code, status = MISTAKE, "failed"
    except OSError as error:
        explained = explain_disk(error, directory)
        if explained is None:
            raise
        message, code, status = explained, MISTAKE, "failed"
    except SystemExit as stop:
        code = int(stop.code or 0)
        status = "stopped" if code == STOPPED else "failed"
    except BaseException as error:
        if context is not None and context.world.is_main:
            with contextlib.suppress(OSError):
                record_end(context.run, "failed")
        if isinstance(error, RuntimeError) and told_by_another():  # the connection to it was lost
            return 1
        raise
    if context is not None and context.world.is_main:
        with contextlib.suppress(OSError):  # on a full disk the message counts
            record_end(context.run, status)
    return _report(code, message)


def _report(code: int, message: str) -> int:
    """Say what went wrong, once, to whoever listens; return the exit code of this process."""
    tell_outcome(code, message)
    # All ranks stop together, and torchrun would take the first one's exit code 3 for a failure and kill the others.
    return 0 if code == STOPPED and OUTCOME_VARIABLE in os.environ else code


def main() -> int:
    """Entry point of one process."""
    if OUTCOME_VARIABLE in os.environ:
        die_with_parent()
        os.dup2(1, 2)  # what ranks say goes to stdout; stderr is left to torchrun's own messages
    return run_stage(sys.argv[1], Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
