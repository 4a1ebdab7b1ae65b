"""`hdtrain export denoiser=RUN decoder=RUN --out DIR`: DIR/model is a pipeline that plain diffusers loads.

The published weights are copied byte for byte, so that their hashes stay those of the manifests. No pipeline of
diffusers asks a UNet2DModel for a class: a class-conditional one is loaded in the same way, and the card has the loop.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path

from hdtrain.config.exchange import ExportConfig
from hdtrain.errors import ManifestError
from hdtrain.formats.atomic import sha256_file, write_bytes, write_json
from hdtrain.formats.latent_space import PIXELS, check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest, check_files
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.model_card import WeightsFile, model_card
from hdtrain.stages.base import StageContext

SCHEDULER = "scheduler"


def run(config: ExportConfig, context: StageContext) -> None:
    """Check that the models fit, copy them, write the index and the card. A single process does it all."""
    if not context.world.is_main:
        return
    denoiser = context.manifest_of(config.denoiser)
    decoder = context.manifest_of(config.decoder) if config.decoder else None
    _check_space(config, denoiser, decoder)
    folder = context.run.path / ".model.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    check_files(config.denoiser, denoiser)
    source = RunDir(config.denoiser).model
    shutil.copytree(source, folder / "unet", ignore=shutil.ignore_patterns(SCHEDULER))
    shutil.copytree(source / SCHEDULER, folder / SCHEDULER)
    if config.decoder and decoder:
        check_files(config.decoder, decoder)
        shutil.copytree(RunDir(config.decoder).model, folder / "vqvae")
    pipeline = "LDMPipeline" if decoder else "DDIMPipeline"
    write_json(folder / "model_index.json", _index(pipeline, folder))
    weights = [
        WeightsFile(str(path.relative_to(folder)), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*.safetensors"))
    ]
    write_bytes(folder / "README.md", model_card(config, denoiser, decoder, weights).encode())
    shutil.rmtree(context.run.model, ignore_errors=True)
    folder.rename(context.run.model)
    context.publish(
        files=sorted(path for path in context.run.model.rglob("*") if path.is_file()),
        classes=denoiser.classes,
        info={"pipeline": pipeline, "license": config.license, "data_license": config.data_license},
    )
    size = sum(file.size for file in weights) / 2**20
    print(f"export: {context.run.model}: {pipeline}, {size:,.1f} MiB of weights")


def _check_space(config: ExportConfig, denoiser: Manifest, decoder: Manifest | None) -> None:
    pixels = denoiser.info.get("space") == PIXELS
    if pixels and decoder:
        raise ManifestError(f"{config.denoiser} was trained on pixels and gives images itself; leave decoder out")
    if pixels:
        return
    ours = manifest_latent_space(denoiser)
    if config.decoder is None or decoder is None:
        raise ManifestError(
            f"{config.denoiser} works in the latent space of encoder {ours['encoder_id'][:12]}; name an autoencoder of "
            "it: decoder=RUN"
        )
    check_same_latent_space(f"denoiser {config.denoiser}", ours, config.decoder, manifest_latent_space(decoder))


def _index(pipeline: str, folder: Path) -> dict[str, object]:
    """`model_index.json`: each part's library and class, as its own config names it."""
    classes = {
        path.parent.name: json.loads(path.read_bytes())["_class_name"]
        for path in sorted([*folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")])
    }
    version = importlib.metadata.version("diffusers")
    parts = {name: ["diffusers", name_of_class] for name, name_of_class in classes.items()}
    return {"_class_name": pipeline, "_diffusers_version": version, **parts}
