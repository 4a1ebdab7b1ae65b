"""What the previews of `--dry-run` share: `python -m PREVIEW DIR < CONFIG`, lines go to stdout.

DIR is the run directory, which need not be there. The resolved config comes as YAML on stdin. Nothing is written. Exit
codes as of `hdtrain.stages.__main__`.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml

from hdtrain.config.base import Config
from hdtrain.config.load import validate
from hdtrain.errors import HdtrainError
from hdtrain.stages.__main__ import MISTAKE

ConfigT = TypeVar("ConfigT", bound=Config)


def print_preview(preview: Callable[[ConfigT, Path], Iterator[str]], model: type[ConfigT], stage: str) -> int:
    """Print what is found, or a mistake; return the exit code."""
    try:
        for line in preview(validate(model, yaml.safe_load(sys.stdin), stage), Path(sys.argv[1])):
            print(line)
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return 0
