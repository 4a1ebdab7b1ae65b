"""The result does not depend on how many processes made it."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from hdtrain.formats.manifest import read_manifest


def weights(run) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(run)} {name}": value
        for path in sorted((run / "model").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def rows(run) -> list[dict]:
    return [json.loads(line) for path in sorted(run.rglob("metrics.jsonl")) for line in path.read_text().splitlines()]


def tars(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").iterdir()) if path.suffix == ".tar"}


@pytest.mark.parametrize("name", ["vae", "ldm", "phi", "guide", "decoder"])
def test_two_ranks_train_the_same_weights_as_one(chain, ranks, tmp_path, name):
    stage, _ = chain.configs[name]
    config = chain.config(name)
    if "seeds" in config or name == "guide":
        config["seeds"] = [0, 1]
    config["duration"] = {"images": 16, "log_every_steps": 1}
    one, two = (ranks.run(stage, tmp_path / str(size), config, size) for size in (1, 2))
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(theirs[key] - ours[key]).square().sum() for key in ours]).sum().sqrt()
    size = torch.stack([value.square().sum() for value in ours.values()]).sum().sqrt()
    print(name, float(difference / size))
    a, b = rows(one), rows(two)
    for x, y in zip(a, b, strict=True):
        print({k: (x[k], y[k]) for k in x if abs(x[k] - y[k]) > 1e-4 * abs(x[k])})
