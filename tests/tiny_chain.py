"""Small artefacts made by the real stages, each at its first use: `chain["ldm"]` is a published run directory.

The images are 32 px: labelled stripes and dots, and unlabelled ones of both. Nothing is learned in so few steps; what
the tests ask is whether the numbers are the right ones.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

SIZE_PX = 32
CLASSES = ["dots", "stripes"]
READER = {"resolution": SIZE_PX, "threads": 1}


def draw(label: int, rng: np.random.Generator, size_px: int = SIZE_PX) -> np.ndarray:
    """One image of its class: uint8 HWC."""
    y, x = np.mgrid[:size_px, :size_px]
    phase, period = rng.uniform(0, 6, 2), rng.uniform(5, 8)
    wave = np.sin(6.28 * x / period + phase[0]) * (np.sin(6.28 * y / period + phase[1]) if label == 0 else 1.0)
    colour = np.array([200, 140, 190]) + rng.integers(-20, 20, 3)
    pixels = colour + 50 * wave[..., None] + rng.normal(0, 5, (size_px, size_px, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_raw(root: Path, size_px: int = SIZE_PX) -> Path:
    """`labelled/CLASS`, `test/CLASS` (10 and 6 images a class, PNG) and `unlabelled` (20 JPEGs)."""
    rng = np.random.default_rng(0)
    for split, count in (("labelled", 10), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw(label, rng, size_px)).save(root / split / name / f"{split}{i:03d}.png")
    (root / "unlabelled").mkdir()
    for i in range(20):
        Image.fromarray(draw(i % 2, rng, size_px)).save(root / "unlabelled" / f"{i:03d}.jpg", quality=95)
    return root


def train_config(images: int, batch: int = 4, lr: float = 1e-3, **duration: Any) -> dict[str, Any]:
    """What every training stage needs."""
    return {
        "batch": {"global_batch_size": batch},
        "optim": {"lr": lr},
        "duration": {"images": images, "log_every_steps": 1, **duration},
    }


def configs(at: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every artefact's stage and config; `at(name)` places a parent, `at("raw/…")` raw images."""
    vae = {
        "preset": "kl-f4-tiny",
        "reader": READER,
        "perceptual": {"kind": "none"},
        "kl_weight": 1e-4,
        "adversarial": {"start_images": 8, "weight": 0.1},
        **train_config(16),
    }
    shards = {"samples_per_shard": 6}
    return {
        "unlabelled": ("shard", {"sources": [{"path": at("raw/unlabelled")}], "split": "unlabelled", **shards}),
        "labelled": ("shard", {"sources": [{"path": at("raw/labelled")}], **shards}),
        "test": ("shard", {"sources": [{"path": at("raw/test")}], "split": "test", **shards}),
        "vae": ("train-vae", {"images": [at("unlabelled")], **vae}),
        "other-vae": ("train-vae", {"images": [at("unlabelled")], **vae, **train_config(4), "seed": 1}),
        "latents": ("encode", {"images": [at("unlabelled")], "vae": at("vae"), "records_per_member": 4}),
        "labelled-latents": ("encode", {"images": [at("labelled")], "vae": at("vae"), "flips": True}),
        "ldm": ("train-ldm", {"latents": at("latents"), "vae": at("vae"), "preset": "tiny", **train_config(16)}),
        "phi": (
            "train-classifier",
            {
                "model": {"kind": "image", "images": [at("labelled")], "preset": "lae-tiny", "reader": READER},
                **train_config(16),
            },
        ),
        "guide": (
            "train-classifier",
            {"model": {"kind": "latent", "latents": at("labelled-latents"), "preset": "lae-tiny"}, **train_config(32)},
        ),
        "decoder": (
            "adapt-decoder",
            {
                "images": [at("labelled")],
                "vae": at("vae"),
                "classifier": at("phi"),
                "reader": READER,
                "perceptual": {"kind": "none"},
                "classifier_weight": 0.02,
                **train_config(8),
            },
        ),
        "candidates": (
            "sample",
            {
                "denoiser": at("ldm"),
                "decoder": at("decoder"),
                "classifier": at("guide"),
                "per_class": 6,
                "solver": {"steps": 4, "eta": 0.5},
                "samples_per_shard": 4,
                "batch_size": 2,
            },
        ),
    }


class Chain:
    """Artefacts below `root`, made in this process when first asked for."""

    def __init__(self, root: Path):
        self.root = root
        self.configs = configs(self._at)

    def _at(self, name: str) -> str:
        return str(self.root / name)

    def config(self, name: str, **changes: Any) -> dict[str, Any]:
        """The config of an artefact with top-level keys replaced; its parents are made."""
        _, config = self.configs[name]
        for parent in self.configs:
            if parent != name and f"'{self._at(parent)}'" in str(config):
                self[parent]
        return {**config, **changes}

    def __getitem__(self, name: str) -> Path:
        directory = self.root / name
        if not (directory / "manifest.json").exists():
            code = run_here(self.configs[name][0], directory, self.config(name))
            assert code == 0, f"{name} left with {code}"
        return directory

    def make(self, name: str, directory: Path, **changes: Any) -> Path:
        """Another run of `name`'s stage, with a changed config."""
        code = run_here(self.configs[name][0], directory, self.config(name, **changes))
        assert code == 0, f"{name} left with {code}"
        return directory


def prepare(stage: str, directory: Path, config: dict[str, Any]) -> Path:
    """Write the resolved config, as the command line does."""
    from hdtrain.config.load import validate
    from hdtrain.config.stages import STAGES

    directory.mkdir(parents=True, exist_ok=True)
    resolved = validate(STAGES[stage].config, config, "test").model_dump(mode="json")
    (directory / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    return directory


def run_here(stage: str, directory: Path, config: dict[str, Any]) -> int:
    """Run a stage in this process, whose signal handlers stay what they were.

    The process group is made here and kept: one process cannot train after its first group was destroyed.
    """
    from hdtrain.distributed.collectives import init_process_group
    from hdtrain.stages.__main__ import run_stage

    init_process_group()
    fewer_grid_steps()
    with signals_kept():
        return run_stage(stage, prepare(stage, directory, config))


def run_in_place(stage: str, directory: Path, config: dict[str, Any]) -> int:
    """The same after all that the command line does with the run directory: skip, go on, move aside, take over."""
    from hdtrain.config.stages import STAGES
    from hdtrain.prepare import resolve, run_node

    class Here:
        def run_stage(self, stage: str, run_dir: Path, ranks: int) -> int:
            return run_here(stage, run_dir, yaml.safe_load((run_dir / "config.yaml").read_text()))

    resolved = resolve(STAGES[stage].config, config, "test")
    return run_node(stage, resolved, directory, ranks=1, launcher=Here(), source="test").code


def fewer_grid_steps() -> None:
    """The pictures that train-ldm draws of itself cost more than its training here."""
    from hdtrain.training import diffusion

    diffusion.GRID_STEPS, diffusion.GRID_IMAGES = 2, 4


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Put back the signal handlers that a training run installs."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One chain for the whole test session."""
    root = tmp_path_factory.mktemp("chain")
    write_raw(root / "raw")
    return Chain(root)
