"""Running the stages in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sharding_helpers import Run, prepare

from hdtrain.config.stages import STAGES
from hdtrain.errors import HdtrainError
from hdtrain.formats.manifest import read_manifest
from hdtrain.stages import shard, verify
from hdtrain.stages.base import StageContext


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Run]:
    """`pack("out", sources=[...])` runs the stage `shard` and returns what it published."""

    def run(name: str = "out", **config: Any) -> Run:
        parsed, context = StageContext.open("shard", prepare(tmp_path / name, **config))
        shard.run(parsed, context)  # type: ignore[arg-type]
        return Run(tmp_path / name)

    return run


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., dict[str, Any] | str]:
    """Run the stage `verify`; return the published figures, or the message of the error."""

    def run(images: Path, decode: bool = True) -> dict[str, Any] | str:
        directory = prepare(tmp_path / "verified", images=str(images), decode=decode)
        try:
            config, context = StageContext.open("verify", directory)
            verify.run(config, context)  # type: ignore[arg-type]
        except HdtrainError as error:
            return str(error)
        assert STAGES["verify"].publishes == "verification"
        return read_manifest(directory, ("verification",)).info

    return run
