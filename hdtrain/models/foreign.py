"""Models from elsewhere: folders of diffusers', and CompVis's state dicts. No code of theirs is run."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hdtrain.config.load import validate
from hdtrain.config.training import NoiseScheduleConfig, Prediction
from hdtrain.errors import CheckpointError, WeightsError
from hdtrain.models import compvis
from hdtrain.models.autoencoder import AUTOENCODER_CLASSES, Autoencoder
from hdtrain.models.denoiser import Denoiser2D

ModelT = TypeVar("ModelT")
LDM_SCHEDULE = NoiseScheduleConfig(kind="scaled_linear", beta_start=0.0015, beta_end=0.0195)
"""What LDM trains with unless its config says otherwise."""
_BETAS = {"linear": 1.0, "scaled_linear": 0.5}
"""The power of β in which a schedule is linear."""
_SCHEDULER_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_DENOISERS: dict[str, type[Denoiser2D]] = {model.__name__: model for model in (UNet2DModel, UNet2DConditionModel)}
_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "addition_embed_type")
"""Settings of a U-Net that looks at more than z_t, t and tokens."""


@dataclass(frozen=True)
class ForeignAutoencoder:
    """An autoencoder in fp32; `latent_scale` and `resolution` are None where its files do not say."""

    vae: Autoencoder
    source: str
    latent_scale: float | None
    resolution: int | None

    @property
    def usual_scale(self) -> float | None:
        """The scale where neither files nor user say one: LDM leaves the latents of a VQModel as they are."""
        return 1.0 if isinstance(self.vae, VQModel) else None


@dataclass(frozen=True)
class ForeignDenoiser:
    """A denoiser in fp32, and what its files say of how it was trained: None where they do not."""

    unet: Denoiser2D
    source: str
    schedule: NoiseScheduleConfig | None
    prediction: Prediction | None
    latent_scale: float | None
    """Of the latents that it was trained on."""
    vae: Autoencoder | None
    """The autoencoder that lies beside it."""
    other_vae: str | None = None
    """Class of an autoencoder beside it that is none of ours."""


def autoencoder_from_folder(folder: Path) -> ForeignAutoencoder:
    """Read an AutoencoderKL or a VQModel from its own folder or from a pipeline's.

    Raises:
        WeightsError: there is none, it is damaged, its latents are not z0 = s·z, or its decoder is of another build.
    """
    component, config, model = _found(folder, AUTOENCODER_CLASSES)
    foreign = [name for name in ("shift_factor", "latents_mean", "latents_std") if config.get(name) is not None]
    if foreign:
        raise WeightsError(f"{component}: its latents have a {foreign[0]}; hdtrain scales latents by one factor only")
    for name in ("use_quant_conv", "use_post_quant_conv"):
        if not config.get(name, True):
            raise WeightsError(f"{component}: {name} is false; hdtrain's autoencoders have these convolutions")
    if config.get("norm_type", "group") != "group":
        raise WeightsError(
            f"{component}: norm_type is '{config['norm_type']}' (MoVQ); hdtrain's decoders have group normalisation"
        )
    vae: Autoencoder = _load(model, component)
    scale, resolution = config.get("scaling_factor"), config.get("sample_size")
    return ForeignAutoencoder(
        vae, f"diffusers {model.__name__}", None if scale is None else float(scale), square(resolution)
    )


def denoiser_from_folder(folder: Path) -> ForeignDenoiser:
    """Read a U-Net from its own folder or from a pipeline's, with the pipeline's schedule and autoencoder.

    A UNet2DConditionModel comes as a denoiser that looks at nothing: one to start from, with embeddings of one's own.

    Raises:
        WeightsError: there is none, it is damaged, conditional on what hdtrain does not know, or hdtrain has no such
            schedule.
    """
    component, config, model = _found(folder, _DENOISERS)
    for key in _CONDITIONS:
        if config.get(key):
            raise WeightsError(
                f"{component}: its {model.__name__} is conditional ({key}={config[key]}); hdtrain imports none of those"
            )
    unet: Denoiser2D = _load(model, component)
    schedule, prediction = _schedule(folder)
    classes = _components(folder)
    ours = autoencoder_from_folder(folder) if AUTOENCODER_CLASSES.keys() & set(classes.values()) else None
    other = next((name for name in classes.values() if name == "AutoencoderTiny"), None)
    return ForeignDenoiser(
        unet,
        f"diffusers {model.__name__}",
        schedule,
        prediction,
        ours.latent_scale if ours else None,
        ours.vae if ours else None,
        other,
    )


def autoencoder_from_compvis(path: Path, state: Mapping[str, Tensor]) -> ForeignAutoencoder:
    """The first stage of a CompVis checkpoint, whose tensors are `state`.

    Raises:
        WeightsError: it holds none, or one that neither AutoencoderKL nor VQModel is.
    """
    try:
        weights = compvis.autoencoder_weights(state)
        architecture = compvis.autoencoder_architecture(weights)
        vae = (VQModel if compvis.is_quantised(weights) else AutoencoderKL)(**architecture)
        vae.load_state_dict(compvis.convert_autoencoder(weights, architecture, _shapes(vae)))
    except CheckpointError as error:
        raise WeightsError(f"{path}: {error}") from None
    return ForeignAutoencoder(vae, "CompVis first stage", _scale(state), None)


def denoiser_from_compvis(path: Path, state: Mapping[str, Tensor], head_channels: int, ema: bool) -> ForeignDenoiser:
    """The U-Net of a CompVis checkpoint, with its schedule (LDM's, where it does not say) and first stage.

    Raises:
        WeightsError: it holds none, one that UNet2DModel is not, or hdtrain has no such schedule.
    """
    try:
        weights, kind = compvis.unet_weights(state, ema)
        architecture = compvis.unet_architecture(weights, head_channels)
        unet = UNet2DModel(**architecture)
        unet.load_state_dict(compvis.convert_unet(weights, architecture, _shapes(unet)))
    except CheckpointError as error:
        raise WeightsError(f"{path}: {error}") from None
    schedule = _schedule_of_betas(path, state["betas"]) if "betas" in state else LDM_SCHEDULE
    vae, other = _first_stage(path, state)
    return ForeignDenoiser(unet, f"CompVis U-Net, {kind} weights", schedule, "epsilon", _scale(state), vae, other)


def _first_stage(path: Path, state: Mapping[str, Tensor]) -> tuple[Autoencoder | None, str | None]:
    """The autoencoder beside a U-Net, or what it is where it quantises in a way that VQModel does not."""
    if "first_stage_model.encoder.conv_in.weight" not in state:
        return None, None
    try:
        return autoencoder_from_compvis(path, state).vae, None
    except WeightsError:
        if not any(name.startswith("first_stage_model.quantize.") for name in state):
            raise
        return None, "VQ model of another build"


def _components(folder: Path) -> dict[str, str]:
    """Name to class of a pipeline's parts; of a model's own folder nothing."""
    if not (folder / "model_index.json").is_file():
        return {}
    index = _read_json(folder / "model_index.json")
    return {
        name: str(value[1])
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1]
    }


def model_in(folder: Path, part: Literal["autoencoder", "denoiser"]) -> str:
    """Class of the model of a folder that an import of `part` would read; no weights are.

    Raises:
        WeightsError: there is none.
    """
    found = _found(folder, AUTOENCODER_CLASSES) if part == "autoencoder" else _found(folder, _DENOISERS)
    return found[2].__name__


def _found(folder: Path, known: Mapping[str, type[ModelT]]) -> tuple[Path, dict[str, Any], type[ModelT]]:
    """Folder, config and class of the model of a known class."""
    component = _component(folder, *known)
    config = _read_json(component / "config.json")
    return component, config, _class_of(component, config, known)


def _component(folder: Path, *wanted: str) -> Path:
    """The folder of the model of one of the classes `wanted`: `folder` itself, or what a pipeline's index names."""
    components = _components(folder)
    if components:
        found = [name for name, name_of_class in components.items() if name_of_class in wanted]
        if not found:
            there = ", ".join(f"{name} ({name_of_class})" for name, name_of_class in components.items())
            raise WeightsError(f"{folder}: its model_index.json names no {' or '.join(wanted)}; it has {there}")
        return folder / found[0]
    if (folder / "manifest.json").is_file():
        raise WeightsError(f"{folder} is a run directory of hdtrain's already; name it where a parent is asked for")
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder} is no folder of diffusers': expected model_index.json (a pipeline) or config.json (a model)"
        )
    return folder


def _class_of(component: Path, config: Mapping[str, Any], known: Mapping[str, type[ModelT]]) -> type[ModelT]:
    """The class that a model's own config names, which a pipeline's index need not agree with.

    Raises:
        WeightsError: hdtrain has none of that name.
    """
    name = str(config.get("_class_name"))
    if name not in known:
        raise WeightsError(f"{component}: its config.json is of class {name}, expected {' or '.join(known)}")
    return known[name]


def _load(model: type[ModelMixin], folder: Path) -> Any:
    plain, variants = "diffusion_pytorch_model.", sorted(folder.glob("diffusion_pytorch_model.*.safetensors"))
    whole = any((folder / f"{plain}{ending}").exists() for ending in ("safetensors", "safetensors.index.json", "bin"))
    variant = variants[0].name.split(".")[1] if variants and not whole else None
    logger = logging.getLogger("diffusers")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # what it would print is in the exception or in `said`
        loaded, said = model.from_pretrained(  # type: ignore[attr-defined]
            folder,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            torch_dtype=torch.float32,
            variant=variant,
        )
    except Exception as error:  # diffusers raises whatever its readers do: OSError, ValueError, RuntimeError, KeyError
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{folder}: cannot be loaded as {model.__name__}: {first}") from None
    finally:
        logger.setLevel(level)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if said[what]:
            names = ", ".join(map(str, sorted(said[what])[:3]))
            raise WeightsError(
                f"{folder}: its weights are not those of its config.json: {len(said[what])} {what.replace('_', ' ')}, "
                f"such as {names}"
            )
    return loaded


def _schedule(folder: Path) -> tuple[NoiseScheduleConfig | None, Prediction | None]:
    """β schedule and prediction of a folder's scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None, None
    config = {**_SCHEDULER_DEFAULTS, **_read_json(path)}
    if config["beta_schedule"] not in _BETAS or config.get("trained_betas") is not None:
        kind = "trained_betas" if config.get("trained_betas") is not None else config["beta_schedule"]
        raise WeightsError(f"{path}: hdtrain has no β schedule '{kind}'; it has {' and '.join(_BETAS)}")
    schedule = {
        "kind": config["beta_schedule"],
        "beta_start": float(config["beta_start"]),
        "beta_end": float(config["beta_end"]),
        "num_train_timesteps": int(config["num_train_timesteps"]),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    prediction: Prediction = config.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        known = ", ".join(get_args(Prediction))
        raise WeightsError(f"{path}: hdtrain has no prediction_type '{prediction}'; it has {known}")
    return validate(NoiseScheduleConfig, schedule, str(path)), prediction


def _schedule_of_betas(path: Path, betas: Tensor) -> NoiseScheduleConfig:
    """The schedule whose β a CompVis checkpoint holds."""
    values = betas.double().cpu().numpy()
    start, end = (float(f"{value:.6g}") for value in (values[0], values[-1]))
    for kind, power in _BETAS.items():
        if np.allclose(np.linspace(start**power, end**power, len(values)) ** (1 / power), values, rtol=1e-4, atol=0):
            schedule = {"kind": kind, "beta_start": start, "beta_end": end, "num_train_timesteps": len(values)}
            return validate(NoiseScheduleConfig, schedule, str(path))
    raise WeightsError(f"{path}: its β, {start:g} to {end:g}, are of no schedule of hdtrain's ({' or '.join(_BETAS)})")


def _scale(state: Mapping[str, Tensor]) -> float | None:
    return float(state["scale_factor"]) if "scale_factor" in state else None


def square(size: Any) -> int | None:
    """Height and width of a `sample_size`, which is one number or both; None where they differ, or it is not given."""
    if isinstance(size, list | tuple):
        return int(size[0]) if len(set(size)) == 1 else None
    return None if size is None else int(size)


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; the folder of diffusers' is not complete") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: expected a mapping, got {type(tree).__name__}")
    return tree
