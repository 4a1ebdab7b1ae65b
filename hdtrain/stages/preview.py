"""What the previews of `--dry-run` share: the resolved config comes as YAML on stdin, lines go to stdout."""

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import yaml

from hdtrain.config.base import Config
from hdtrain.config.load import validate
from hdtrain.errors import HdtrainError
from hdtrain.stages.__main__ import MISTAKE

ConfigT = TypeVar("ConfigT", bound=Config)


def print_preview(preview: Callable[[ConfigT], Iterator[str]], model: type[ConfigT], stage: str) -> int:
    """Print what is found, or a mistake; return the exit code."""
    try:
        for line in preview(validate(model, yaml.safe_load(sys.stdin), stage)):
            print(line)
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return 0
