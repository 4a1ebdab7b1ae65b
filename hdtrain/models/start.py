"""Training that begins with the weights of a published model, trained here or imported."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hdtrain.errors import CheckpointError
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir

ModelT = TypeVar("ModelT", bound=ModelMixin)
MAX_NAMED = 3


def start_from(fresh: ModelT, directory: Path | None) -> ModelT:
    """The published model of `directory`, ready to be trained in place of `fresh`; without one, `fresh` itself.

    Names and shapes of the weights must be the same. What these do not tell (the width of attention heads, paddings,
    where a normalisation has its groups) is the published model's: its weights were trained with that. The size of
    images or latents is `fresh`'s: both models are convolutional.

    A class-conditional `fresh` may start from a denoiser without classes, one that looks at embeddings from one that
    does not: it keeps its own class embeddings and projection then. What hides a class, and an embedding, is zero at
    first, so with these it begins as the other denoiser. A UNet2DConditionModel may start from a UNet2DModel of the
    same channels: its convolutions are taken, and its own attention, which is of another form, adds nothing at first.

    Raises:
        CheckpointError: the models differ; the first differing weights are named.
        ManifestError: a file is altered.
    """
    if directory is None:
        return fresh
    manifest = read_manifest(directory, ("autoencoder", "denoiser"))
    check_files(directory, manifest)
    model: Any = type(fresh)
    folder = RunDir(directory).model
    found_class = model.load_config(folder, local_files_only=True)["_class_name"]
    if (found_class, model) == (UNet2DModel.__name__, UNet2DConditionModel):
        return _with_convolutions(fresh, folder, directory)
    if found_class != model.__name__:
        raise CheckpointError(
            f"start: {directory} is a {found_class}, and this trains a {model.__name__}; leave start out, or name a "
            f"published {model.__name__}"
        )
    start: ModelT = model.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    if isinstance(start, UNet2DModel | UNet2DConditionModel):
        start = _with_conditions(start, fresh)
    problems = _differences(start, fresh)
    if problems:
        more = f", and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise CheckpointError(
            f"start: {directory} (preset {manifest.info['preset']}) is of another size: "
            f"{'; '.join(problems[:MAX_NAMED])}{more}; choose the preset that it has"
        )
    start.register_to_config(sample_size=fresh.config["sample_size"])
    start.train()
    print(f"start: the weights of {directory}")
    return start


_CONDITIONS = {
    "class_embedding.weight": ("num_class_embeds",),
    "encoder_hid_proj.weight": ("encoder_hid_dim", "encoder_hid_dim_type"),
    "encoder_hid_proj.bias": ("encoder_hid_dim", "encoder_hid_dim_type"),
}
"""Weights that a condition brings, and the settings that they follow from."""


def _with_conditions(start: Any, fresh: Any) -> Any:
    """`start` with `fresh`'s own weights for what it is to be conditioned on and was not."""
    ours, theirs = fresh.state_dict(), start.state_dict()
    new = [name for name in _CONDITIONS if name in ours and name not in theirs]
    if not new:
        return start
    settings = {key: fresh.config[key] for name in new for key in _CONDITIONS[name]}
    model: Any = type(start).from_config({**start.config, **settings})
    model.load_state_dict({**theirs, **{name: ours[name] for name in new}})
    return model


def _with_convolutions(fresh: Any, folder: Path, directory: Path) -> Any:
    """`fresh` with the weights of a UNet2DModel for everything but attention, which is silenced.

    Raises:
        CheckpointError: the channels differ.
    """
    start: Any = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    ours: dict[str, Tensor] = fresh.state_dict()
    theirs = {name: value for name, value in start.state_dict().items() if "attentions" not in name}
    other = [name for name, value in theirs.items() if name not in ours or ours[name].shape != value.shape]
    if other:
        raise CheckpointError(
            f"start: {directory} has other channels or another form than the denoiser to be trained ({other[0]}, and "
            f"{len(other) - 1} more weights); train one without embeddings with the same preset, and start from that"
        )
    fresh.load_state_dict(ours | theirs)
    with torch.no_grad():
        for name, module in fresh.named_modules():
            if name.endswith("proj_out") and isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.zero_()
                module.bias.zero_() if module.bias is not None else None
    share = sum(value.numel() for value in theirs.values()) / sum(value.numel() for value in ours.values())
    print(f"start: the convolutions of {directory}, {share:.0%} of the weights; attention begins anew")
    return fresh


def _differences(start: ModelMixin, fresh: ModelMixin) -> list[str]:
    ours = {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in start.state_dict().items()}
    return [
        f"{name} is {theirs.get(name, 'not there')}, expected {ours.get(name, 'none')}"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
