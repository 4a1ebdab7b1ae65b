"""Published artefacts for the stages `select` and `evaluate`: real patches in real shards, and small classifiers."""

import io
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import FieldSpec, Manifest, publish, read_manifest
from hdtrain.formats.shards import ShardWriter, shard_entry
from hdtrain.models.classifier import build_classifier, weights_file
from hdtrain.stages.__main__ import run_stage

CLASSES = ["lymph", "mucosa", "adipose"]
FOLDERS = ["04_LYMPHO", "06_MUCOSA", "07_ADIPOSE"]
SIZE = 32
IMAGE_FIELDS = {"image": FieldSpec(dtype="uint8", shape=[None, None, 3], range=(0, 255), layout="HWC RGB")}


def read_patches(root: Path, split: str, start: int, count: int) -> list[tuple[str, int, bytes, str]]:
    """(key, label, png, slide) of `count` Kather patches a class at 32 px, interleaved."""
    samples = []
    for label, folder in enumerate(FOLDERS):
        for path in sorted((root / "kather2016_crc8" / split / folder).iterdir())[start : start + count]:
            buffer = io.BytesIO()
            Image.open(path).convert("RGB").resize((SIZE, SIZE)).save(buffer, "PNG")
            samples.append((path.stem.replace(".", "_"), label, buffer.getvalue(), path.name.split("HE-")[1][:2]))
    return sorted(samples)


def publish_images(directory: Path, samples: list, per_shard: int, split: str, classes=CLASSES) -> Path:
    """An `images` artefact."""
    entries = []
    for number, first in enumerate(range(0, len(samples), per_shard)):
        tar = directory / "shards" / f"shard-{number:06d}.tar"
        with ShardWriter(tar) as writer:
            for key, label, image, slide in samples[first : first + per_shard]:
                writer.add(key, "png", image, {"slide": slide, "label": classes[label]}, label)
        entries.append(shard_entry(tar, directory))
    manifest = Manifest(
        kind="images",
        stage="shard",
        fingerprint="f",
        commit="c",
        fields=IMAGE_FIELDS,
        shards=entries,
        split=split,
        classes=classes,
    )
    publish(directory, manifest)
    return directory


def publish_classifier(
    directory: Path, samples: list, seeds=(0, 1), steps=12, num_synthetic=0, classes=CLASSES
) -> Path:
    """A briefly trained classifier of 32 px images, in train-classifier's format."""
    architecture = {"name": "test_resnet", "classes": classes, "resolution": SIZE}
    images = np.stack([np.asarray(Image.open(io.BytesIO(image))) for _, _, image, _ in samples])
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    y = torch.tensor([label for _, label, _, _ in samples])
    for seed in seeds:
        torch.manual_seed(seed)
        model = build_classifier(architecture)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        weights_file(directory, seed).parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), weights_file(directory, seed))
    info = {
        "kind": "timm",
        "seeds": list(seeds),
        "steps": steps,
        "num_real": len(samples) - num_synthetic,
        "num_synthetic": num_synthetic,
        "resolution": SIZE,
        "architecture": architecture,
    }
    files = {f"model/seed-{seed}.safetensors": sha256_file(weights_file(directory, seed)) for seed in seeds}
    publish(
        directory,
        Manifest(
            kind="classifier",
            stage="train-classifier",
            fingerprint="f",
            commit="c",
            files=files,
            classes=classes,
            info=info,
        ),
    )
    return directory


def prepare(stage: str, directory: Path, config: dict) -> Path:
    """Write the resolved config of a run directory, as the command line does."""
    directory.mkdir(parents=True, exist_ok=True)
    resolved = validate(STAGES[stage].config, config, "test").model_dump(mode="json")
    (directory / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    return directory


def run(stage: str, directory: Path, config: dict, code: int = 0) -> Manifest | None:
    """Run a stage in this process."""
    assert run_stage(stage, prepare(stage, directory, config)) == code
    return read_manifest(directory) if code == 0 else None
