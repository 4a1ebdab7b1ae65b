"""How much memory and time a painting takes: `python tools/bench_paint.py --rows 16 --columns 16`.

Random weights of a tiny denoiser and decoder by default; `--preset ldm4-cond --autoencoder kl-f4` are the published
sizes, and `--preset none` puts a little arithmetic in the place of both networks, so that only the canvas costs memory
and time. Prints one JSON object.

The bound is `PaintPlan.memory_bytes` (canvas, sums, bands); measured is the peak of this process's anonymous memory
less that of a painting of one cell, which has loaded every module and holds what the networks need for a full batch.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.peak import OwnPeak
from torch import Tensor

from hdtrain.config.painting import PaintConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.canvas import canvas_steps
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.distributed.world import World
from hdtrain.formats.embedding_grid import UNKNOWN_PX, EmbeddingGrid
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.autoencoder import LatentCodec, build_autoencoder
from hdtrain.models.denoiser import as_function, build_denoiser
from hdtrain.sampling.painting.models import PaintModels, with_guidance
from hdtrain.sampling.painting.plan import PaintPlan, plan_of
from hdtrain.sampling.painting.work import Painter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class NoNetworks:
    """In the place of denoiser and decoder: latents a quarter as large as the pixels."""

    def __init__(self, window: int):
        self.latent_shape, self.resolution = (3, window, window), 4 * window

    @staticmethod
    def denoise(z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Something of each argument."""
        return 0.9 * z + 0.01 * tokens.mean() + 1e-5 * t[0]

    @staticmethod
    def decode(z0: Tensor) -> Tensor:
        """Every latent four times along both axes."""
        return z0.repeat_interleave(4, 2).repeat_interleave(4, 3)


def main() -> None:
    """Parse, paint, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--stride", type=int, default=None)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--preset", default="tiny-cond")
    parser.add_argument("--autoencoder", default="kl-f4-tiny")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    args = parser.parse_args()
    print(json.dumps(measure(args), indent=1))


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Peak memory above that of one cell, and seconds."""
    models = _models(args)
    with tempfile.TemporaryDirectory() as folder:
        with OwnPeak() as one:
            _paint(args, models, 1, 1, Path(folder) / "one")
        gpu_before = _peak_gpu_bytes()
        began = time.monotonic()
        with OwnPeak() as all_cells:
            plan, config = _paint(args, models, args.rows, args.columns, Path(folder) / "all")
        seconds = time.monotonic() - began
    height, width = plan.pixels
    return {
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "pixels": [width, height],
        "windows": plan.num_windows,
        "steps": args.steps,
        "seconds": round(seconds, 1),
        "windows_per_sec": round(plan.num_windows * (args.steps + 1) / seconds, 1),
        "bound_mb": round(plan.memory_bytes(config) / 1e6, 1),
        "peak_above_one_cell_mb": round((all_cells.bytes - one.bytes) / 1e6, 1),
        "peak_gpu_above_one_cell_mb": round((_peak_gpu_bytes() - gpu_before) / 1e6, 1),
    }


def _models(args: argparse.Namespace) -> PaintModels:
    steps = canvas_steps(NoiseSchedule(NoiseScheduleConfig()), args.steps, "released_code")
    if args.preset == "none":
        nothing: Any = NoNetworks(args.window)
        return PaintModels(nothing.denoise, nothing, steps, "epsilon", device(), torch.float32)
    torch.manual_seed(0)
    vae = build_autoencoder(args.autoencoder, args.window * 4).eval().requires_grad_(False)
    codec = LatentCodec(vae, 1.0).to(device())
    unet = build_denoiser(args.preset, codec.latent_shape[0], args.window, embedding_dim=args.dim)
    unet.eval().requires_grad_(False).to(device(), DTYPES[args.precision])
    return PaintModels(with_guidance(as_function(unet), 4.0, None), codec, steps, "epsilon", device(), torch.float32)


def _paint(
    args: argparse.Namespace, models: PaintModels, rows: int, columns: int, folder: Path
) -> tuple[PaintPlan, PaintConfig]:
    config = PaintConfig.model_validate(
        {
            "denoiser": folder,
            "grid": {"source": folder},
            "batch_size": args.batch_size,
            "stride": args.stride,
            "precision": args.precision,
            "clip_latents": 3,
        }
    )
    unknown = np.full((rows, columns), UNKNOWN_PX, np.int64)
    cells = np.random.default_rng(0).standard_normal((rows, columns, args.dim)).astype(np.float32)
    grid = EmbeddingGrid("random", cells, np.ones((rows, columns), bool), unknown, unknown, 0.5)
    plan = plan_of(config, rows, columns, models.codec.latent_shape, models.codec.resolution)
    painter = Painter(config, grid, plan, models, RunDir(folder), World())
    pixels = painter.paint()
    assert pixels is not None
    painter.write(pixels)
    return plan, config


def _peak_gpu_bytes() -> int:
    return torch.cuda.max_memory_allocated() if device().type == "cuda" else 0


if __name__ == "__main__":
    main()
