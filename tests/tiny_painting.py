"""What a painting needs, small: a published denoiser that looks at embeddings, with random weights, and a grid."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.embedding_grid import EmbeddingGrid, write_grid
from hdtrain.formats.manifest import Manifest, publish
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.autoencoder import build_autoencoder, encoder_id

DIM = 6
ENCODER_HASH = "5" * 64
VIEWS = ("whole", "context-4")
"""Of two tokens."""


def tiny_unet(window: int = 8, channels: int = 3, dim: int = DIM, seed: int = 0) -> UNet2DConditionModel:
    """Nothing is learned, but its output depends on z, t and the embedding."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=window,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        encoder_hid_dim=dim,
        encoder_hid_dim_type="text_proj",
    )
    with torch.no_grad():
        unet.encoder_hid_proj.weight *= 20
    return unet.eval().requires_grad_(False)


def publish_autoencoder(directory: Path, resolution: int = 32, seed: int = 0) -> Path:
    """As `train-vae` publishes one, with random weights."""
    torch.manual_seed(seed)
    vae = build_autoencoder("kl-f4-tiny", resolution)
    vae.save_pretrained(RunDir(directory).model, safe_serialization=True)
    _publish(directory, "autoencoder", "train-vae", {"encoder_id": encoder_id(vae), "latent_scale": 0.7})
    return directory


def _publish(directory: Path, kind: str, stage: str, info: dict[str, Any]) -> None:
    files = {str(path.relative_to(directory)): sha256_file(path) for path in RunDir(directory).model.iterdir()}
    publish(directory, Manifest(kind=kind, stage=stage, fingerprint="0" * 64, commit="", files=files, info=info))


def publish_denoiser(directory: Path, vae: Path, unet: UNet2DConditionModel | None = None, **info: Any) -> Path:
    """As `train-ldm` publishes a denoiser of the latent space of `vae`; `info` is changed as given."""
    (unet or tiny_unet()).save_pretrained(RunDir(directory).model, safe_serialization=True)
    space = json.loads((vae / "manifest.json").read_bytes())["info"]
    facts = {
        "space": "latents",
        "encoder_id": space["encoder_id"],
        "latent_scale": space["latent_scale"],
        "schedule": NoiseScheduleConfig().model_dump(),
        "prediction": "epsilon",
        "embedding": {
            "dim": DIM,
            "tokens": 1,
            "encoder": {"name": "tiny"},
            "encoder_hash": ENCODER_HASH,
            "dropout": 0.1,
        },
    } | info
    _publish(directory, "denoiser", "train-ldm", facts)
    return directory


def tiny_grid(rows: int, columns: int, seed: int = 0, tokens: int = 1, **changes: Any) -> EmbeddingGrid:
    """Random embeddings of very different directions; one a cell, or two."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns, DIM) if tokens == 1 else (rows, columns, tokens, DIM)
    y, x = np.mgrid[:rows, :columns] * 32
    facts: dict[str, Any] = {
        "name": f"slide{seed}",
        "embeddings": (3 * rng.standard_normal(shape)).astype(np.float32),
        "present": np.ones((rows, columns), bool),
        "x": x.astype(np.int64),
        "y": y.astype(np.int64),
        "mpp": 0.5,
        "encoder_hash": ENCODER_HASH,
        "token_order": VIEWS[:tokens] if tokens > 1 else None,
    }
    return EmbeddingGrid(**facts | changes)


def saved_grid(path: Path, rows: int, columns: int, **changes: Any) -> Path:
    """`tiny_grid`, in a file."""
    write_grid(path, tiny_grid(rows, columns, **changes))
    return path
