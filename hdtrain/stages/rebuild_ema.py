"""`hdtrain rebuild-ema CONFIG --out RUN`: a trained denoiser with an EMA of another length."""

import shutil

from diffusers.models.unets.unet_2d import UNet2DModel

from hdtrain.config.training import RebuildEmaConfig
from hdtrain.errors import CheckpointError
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.denoiser import load_denoiser
from hdtrain.models.post_hoc import rebuild_average
from hdtrain.stages.base import StageContext


def run(config: RebuildEmaConfig, context: StageContext) -> None:
    """Run the stage."""
    trained = RunDir(config.denoiser)
    unet: UNet2DModel = load_denoiser(config.denoiser)
    average = rebuild_average(trained.ema_snapshots, config.std, config.images)
    weights = {name.removeprefix("unet."): value for name, value in average.items()}
    if weights.keys() != dict(unet.named_parameters()).keys():
        raise CheckpointError(f"{config.denoiser}: its snapshots of averages are those of another model")
    unet.load_state_dict(unet.state_dict() | weights)
    unet.save_pretrained(context.run.model, safe_serialization=True)
    shutil.copytree(trained.model / "scheduler", context.run.model / "scheduler", dirs_exist_ok=True)
    manifest = context.manifest_of(config.denoiser)
    info = manifest.info | {"ema_std": config.std}
    if config.images is not None:
        info["images_seen"] = config.images
    info.pop("ema_decay", None)
    files = sorted(path for path in context.run.model.rglob("*") if path.is_file())
    context.publish(files=files, classes=manifest.classes, info=info)
    print(f"rebuild-ema: relative width {config.std:g}, from {len(trained.ema_snapshots)} snapshots")
