"""`python -m hdtrain.stages STAGE RUN_DIR`: run one prepared stage in this process (or as one rank of torchrun).

Exit codes: 0 published, 2 a mistake of the user's making (one message on stderr), 3 stopped by a signal after saving.
"""

import importlib
import sys
from pathlib import Path

from hdtrain.config.stages import STAGES
from hdtrain.errors import HdtrainError
from hdtrain.formats.provenance import record_end, record_start
from hdtrain.stages.base import StageContext

STOPPED = 3


def run_stage(stage: str, directory: Path) -> int:
    """Run a prepared stage; return the exit code."""
    context = None
    try:
        config, context = StageContext.open(stage, directory)
        if context.world.is_main:
            record_start(context.run, stage, context.fingerprint, context.world.size)
        importlib.import_module(STAGES[stage].module).run(config, context)
        code, status = 0, "done"
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        code, status = 2, "failed"
    except SystemExit as stop:
        code = int(stop.code or 0)
        status = "stopped" if code == STOPPED else "failed"
    except BaseException:
        if context is not None and context.world.is_main:
            record_end(context.run, "failed")
        raise
    if context is not None and context.world.is_main:
        record_end(context.run, status)
    return code


if __name__ == "__main__":
    sys.exit(run_stage(sys.argv[1], Path(sys.argv[2])))
