"""CompVis's latent-diffusion state dicts as diffusers': the unconditional U-Net, the KL and the VQ autoencoder.

Their shapes give the architecture; the tensors are then renamed one for one, and every one must find its place.
Source: Rombach et al. 2022, github.com/CompVis/latent-diffusion, `openaimodel.py` and `diffusionmodules/model.py`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hdtrain.errors import CheckpointError

State = Mapping[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
_KL_RESNET = {"conv_shortcut": "nin_shortcut"}
_KL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_KL_MODULES = (
    (r"down_blocks\.", "down."),
    (r"mid_block\.", "mid."),
    (r"resnets\.", "block."),
    (r"mid\.attentions\.0", "mid.attn_1"),
    (r"attentions\.", "attn."),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_norm_out", "norm_out"),
)
_NOT_WEIGHTS = ("loss.", "model_ema.")
_CODES = "quantize.embedding.weight"
NORM_GROUPS = 32
"""Of every group normalisation; not in the file."""


def unet_weights(state: State, ema: bool = True) -> tuple[dict[str, Tensor], str]:
    """The U-Net's tensors of a whole checkpoint, or of one that holds nothing else, by their names in the U-Net.

    Args:
        state: as in the file.
        ema: prefer the moving average, which LDM keeps under names without dots.

    Returns:
        The tensors, and `ema` or `raw`.

    Raises:
        CheckpointError: there is no U-Net.
    """
    prefix = next((p for p in ("model.diffusion_model.", "") if f"{p}input_blocks.0.0.weight" in state), None)
    if prefix is None:
        raise CheckpointError(
            "it holds no U-Net of CompVis's: expected model.diffusion_model.input_blocks.0.0.weight, "
            f"found {_some(state)}"
        )
    names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    if prefix == "":
        return {name: state[name] for name in names}, "raw"
    averaged = {name: "model_ema." + f"diffusion_model{name}".replace(".", "") for name in names}
    if ema and all(name in state for name in averaged.values()):
        return {name: state[averaged[name]] for name in names}, "ema"
    return {name: state[prefix + name] for name in names}, "raw"


def autoencoder_weights(state: State) -> dict[str, Tensor]:
    """The first stage's tensors of a whole checkpoint, or of one that holds nothing else; its losses are left out.

    Raises:
        CheckpointError: there is no first stage.
    """
    prefix = next((p for p in ("first_stage_model.", "") if f"{p}encoder.conv_in.weight" in state), None)
    if prefix is None:
        raise CheckpointError(
            "it holds no autoencoder of CompVis's: expected first_stage_model.encoder.conv_in.weight, "
            f"found {_some(state)}"
        )
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if not name.startswith(_NOT_WEIGHTS)}


def unet_architecture(state: State, head_channels: int) -> dict[str, Any]:
    """Keyword arguments of diffusers' UNet2DModel, from the shapes of `unet_weights`.

    Args:
        state: by the U-Net's own names.
        head_channels: width of an attention head; no shape depends on it.

    Raises:
        CheckpointError: a conditional U-Net, or one of another build.
    """
    foreign = next((n for n in state if re.search(r"transformer_blocks|label_emb|skip_connection\.0\.", n)), None)
    if foreign:
        raise CheckpointError(f"its U-Net is conditional ({foreign}); hdtrain imports unconditional ones only")
    levels: list[list[tuple[int, bool]]] = [[]]
    for position in range(1, 1 + _count(state, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{position}"
        if f"{block}.0.op.weight" in state:
            levels.append([])
        elif f"{block}.0.in_layers.2.weight" in state:
            width = state[f"{block}.0.in_layers.2.weight"].shape[0]
            levels[-1].append((width, f"{block}.1.qkv.weight" in state))
        else:
            raise CheckpointError(f"{block} of its U-Net is neither a residual block nor a strided convolution")
    uneven = [level for level in levels if len(level) != len(levels[0]) or len(set(level)) != 1]
    if uneven:
        raise CheckpointError(
            f"the levels of its U-Net differ in length or within themselves ((channels, attention): {levels}); "
            "UNet2DModel has the same number of blocks at every level, and one width and attention within one"
        )
    channels, attention = zip(*(level[0] for level in levels), strict=True)
    narrow = [width for width, attends in zip(channels, attention, strict=True) if attends and width % head_channels]
    if narrow:
        raise CheckpointError(f"head_channels: {head_channels} does not divide {narrow[0]} channels of its attention")
    shift = _found(state, "input_blocks.1.0.emb_layers.1.weight").shape[0] == 2 * channels[0]
    return {
        "in_channels": _found(state, "input_blocks.0.0.weight").shape[1],
        "out_channels": _found(state, "out.2.weight").shape[0],
        "block_out_channels": channels,
        "down_block_types": tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
        "up_block_types": tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        "layers_per_block": len(levels[0]),
        "attention_head_dim": head_channels,
        "norm_num_groups": NORM_GROUPS,
        "resnet_time_scale_shift": "scale_shift" if shift else "default",
        "attn_norm_num_groups": NORM_GROUPS if shift else None,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def is_quantised(state: State) -> bool:
    """Whether `autoencoder_weights` are a VQModel's; else they are an AutoencoderKL's."""
    return _CODES in state


def autoencoder_architecture(state: State) -> dict[str, Any]:
    """Keyword arguments of diffusers' AutoencoderKL or VQModel, from the shapes of `autoencoder_weights`.

    Raises:
        CheckpointError: one without the two 1×1 convolutions around the latent, or of uneven levels.
    """
    missing = [name for name in ("quant_conv.weight", "post_quant_conv.weight") if name not in state]
    if missing:
        raise CheckpointError(f"its autoencoder has no {missing[0]}; hdtrain's autoencoders have one")
    levels = _count(state, r"encoder\.down\.(\d+)\.", first=0)
    layers = [_count(state, rf"encoder\.down\.{level}\.block\.(\d+)\.", first=0) for level in range(levels)]
    if len(set(layers)) != 1:
        raise CheckpointError(f"the levels of its encoder have {layers} residual blocks; expected the same number")
    attends = [f"encoder.down.{level}.attn.0.q.weight" in state for level in range(levels)]
    codes = state[_CODES].shape if is_quantised(state) else ()
    return {
        **dict(zip(("num_vq_embeddings", "vq_embed_dim"), codes, strict=False)),
        "in_channels": _found(state, "encoder.conv_in.weight").shape[1],
        "out_channels": _found(state, "decoder.conv_out.weight").shape[0],
        "block_out_channels": tuple(
            _found(state, f"encoder.down.{level}.block.0.conv1.weight").shape[0] for level in range(levels)
        ),
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
        "layers_per_block": layers[0],
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "norm_num_groups": NORM_GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
        "scaling_factor": 1.0,
    }


def convert_unet(state: State, architecture: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """`unet_weights` under the names of a UNet2DModel of this architecture, in fp32.

    Args:
        state: by the U-Net's own names.
        architecture: from `unet_architecture`.
        shapes: of the model's parameters, by name.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or left over.
    """
    sources = {name: _unet_source(name, _unet_modules(architecture)) for name in shapes}
    head = int(architecture["attention_head_dim"])

    def of_part(value: Tensor, name: str) -> Tensor:
        part = re.search(r"\.to_([qkv])\.", name)
        return value if part is None else _of_all_heads(value, "qkv".index(part[1]), head)

    return _convert(state, sources, shapes, of_part)


def convert_autoencoder(
    state: State, architecture: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """`autoencoder_weights` under the names of an AutoencoderKL or VQModel of this architecture, in fp32.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or left over.
    """
    last = len(architecture["block_out_channels"]) - 1
    return _convert(state, {name: _kl_source(name, last) for name in shapes}, shapes, lambda value, _: value)


def _convert(
    state: State,
    sources: Mapping[str, str],
    shapes: Mapping[str, torch.Size],
    of_part: Callable[[Tensor, str], Tensor],
) -> dict[str, Tensor]:
    converted = {}
    for name, source in sources.items():
        value = of_part(_found(state, source), name)
        if not _same_but_for_ones(value.shape, shapes[name]):
            raise CheckpointError(
                f"{source} has shape {tuple(value.shape)}, expected {tuple(shapes[name])} for diffusers' {name}"
            )
        converted[name] = value.reshape(shapes[name]).float()
    left = sorted(set(state) - set(sources.values()))
    if left:
        raise CheckpointError(f"{len(left)} of its tensors have no place in diffusers' model, such as {left[0]}")
    return converted


def _unet_modules(architecture: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' module to CompVis's: one list of blocks down and one up there, levels of blocks here."""
    layers, last = int(architecture["layers_per_block"]), len(architecture["block_out_channels"]) - 1
    modules = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    position = 1
    for level in range(last + 1):
        for layer in range(layers):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{position}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{position}.1"
            position += 1
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{position}.0.op"
        position += level < last
    for level in range(last + 1):
        for layer in range(layers + 1):
            position = level * (layers + 1) + layer
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{position}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{position}.1"
        behind = 2 if architecture["up_block_types"][level].startswith("Attn") else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{position}.{behind}.conv"
    return modules


def _unet_source(name: str, modules: Mapping[str, str]) -> str:
    """The CompVis name of one parameter of a UNet2DModel."""
    module = max((m for m in modules if name.startswith(f"{m}.")), key=len)
    inner, _, kind = name.removeprefix(f"{module}.").rpartition(".")
    if ".attentions." in module:
        inner = "qkv" if inner.startswith("to_") and inner != "to_out.0" else _ATTENTION[inner]
    elif ".resnets." in module:
        inner = _RESNET[inner]
    return ".".join(filter(None, [modules[module], inner, kind]))


def _of_all_heads(qkv: Tensor, part: int, head_channels: int) -> Tensor:
    """Queries (0), keys (1) or values (2): CompVis splits its 3c rows into heads first (`QKVAttentionLegacy`)."""
    return qkv.reshape(-1, 3, head_channels, *qkv.shape[1:])[:, part].flatten(0, 1)


def _kl_source(name: str, last: int) -> str:
    """The CompVis name of one parameter of an autoencoder; CompVis counts the decoder's levels from the finest."""
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
    for pattern, replacement in _KL_MODULES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"mid\.block\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    names = _KL_ATTENTION if re.search(r"\.attn[._]\d", name) else _KL_RESNET
    for ours, theirs in names.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _count(state: State, pattern: str, first: int = 1) -> int:
    """How many indices from `first` on the names hold."""
    found = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    return len({index for index in found if index >= first})


def _found(state: State, name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{name} is missing; its {len(state)} tensors are {_some(state)}")
    return state[name]


def _same_but_for_ones(shape: torch.Size, wanted: torch.Size) -> bool:
    """Linear layers are 1×1 convolutions there."""
    longer, shorter = sorted((tuple(shape), tuple(wanted)), key=len, reverse=True)
    return longer[: len(shorter)] == shorter and set(longer[len(shorter) :]) <= {1}


def _some(state: State) -> str:
    names = sorted(state)
    return f"{', '.join(names[:3])}, …" if len(names) > 3 else ", ".join(names) or "nothing"
