"""Training that begins with the weights of a published model, trained here or imported."""

from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel

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

    A class-conditional `fresh` may start from a denoiser without classes. It keeps its own class embeddings then; the
    hidden class's is zero, so with that one it begins as the other denoiser.

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
    if found_class != model.__name__:
        raise CheckpointError(f"start: {directory} is a {found_class}, and this trains a {model.__name__}")
    start: ModelT = model.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    if isinstance(start, UNet2DModel) and isinstance(fresh, UNet2DModel):
        start = _with_classes(start, fresh)
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


def _with_classes(start: UNet2DModel, fresh: UNet2DModel) -> Any:
    """`start` with the class embeddings of `fresh`, if there are to be any and it has none."""
    count = fresh.config["num_class_embeds"]
    if count is None or start.class_embedding is not None:
        return start
    model: Any = UNet2DModel.from_config({**start.config, "num_class_embeds": count})
    embeddings = fresh.state_dict()["class_embedding.weight"]
    model.load_state_dict({**start.state_dict(), "class_embedding.weight": embeddings})
    return model


def _differences(start: ModelMixin, fresh: ModelMixin) -> list[str]:
    ours = {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in start.state_dict().items()}
    return [
        f"{name} is {theirs.get(name, 'not there')}, expected {ours.get(name, 'none')}"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
