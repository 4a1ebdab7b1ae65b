"""Fixtures that several test folders share. No torch here: most of the unit tests need none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from submitted_runs import recipe, states  # noqa: F401
from tiny_chain import chain  # noqa: F401

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: HDTRAIN_TEST_DATA, or `data` in the folder `shared` beside the repository."""
    folder = Path(os.environ.get("HDTRAIN_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images: set HDTRAIN_TEST_DATA to their folder ({folder} is not there)")
    return folder


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command line in `tmp_path`: `cli("run", "recipe.yaml", code=0)` checks the exit code too."""

    def run(*args: object, code: int | None = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hdtrain", *map(str, args)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def hdtrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command line in this process, for its speed: `hdtrain("run", "recipe.yaml", code=2).err`."""
    from hdtrain.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*args: object, code: int = 0) -> Any:
        capsys.readouterr()
        returned = main(list(map(str, args)))
        said = capsys.readouterr()
        assert returned == code, f"exit code {returned}\n{said.out}\n{said.err}"
        return said

    return run


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Write a raw data set: `make_images("raw", {"tumour": 3, "stroma": 2})`, or `make_images("raw", 5)`: no classes.

    The images are distinct noise around a colour of their class.
    """

    def make(name: str, counts: dict[str, int] | int, size_px: int = 16, seed: int = 0) -> Path:
        folders = counts if isinstance(counts, dict) else {".": counts}
        generator = np.random.default_rng(seed)
        for index, (folder, count) in enumerate(folders.items()):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise = generator.integers(-40, 40, (size_px, size_px, 3))
                pixels = np.clip(np.roll((200, 120, 60), index) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / folder / f"{number:03d}.png")
        return tmp_path / name

    return make
