"""A published prior: its network, and the means and deviations that its numbers are standardised with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file

from hdtrain.data.standard import Standard
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.prior import GridPrior

STANDARD = "standard.safetensors"


@dataclass(frozen=True)
class PublishedPrior:
    """Frozen."""

    network: GridPrior
    embeddings: Standard
    numeric: Standard | None


def save_standards(path: Path, embeddings: Standard, numeric: Standard | None) -> None:
    """Write them beside the weights."""
    found = {"embeddings": embeddings} | ({"numeric": numeric} if numeric else {})
    save_file({f"{name}.{what}": getattr(of, what) for name, of in found.items() for what in ("mean", "std")}, path)


def load_prior(directory: Path, device: torch.device) -> PublishedPrior:
    """Load a run of kind `prior`, its EMA weights, in eval mode.

    Raises:
        ManifestError: it is not published, or a file is altered.
    """
    check_files(directory, read_manifest(directory, ("prior",)))
    folder = RunDir(directory).model
    network: Any = GridPrior.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    arrays = load_file(folder / STANDARD)
    standards = {
        name: Standard(arrays[f"{name}.mean"], arrays[f"{name}.std"])
        for name in ("embeddings", "numeric")
        if f"{name}.mean" in arrays
    }
    network = network.requires_grad_(False).eval().to(device)
    return PublishedPrior(network, standards["embeddings"], standards.get("numeric"))
