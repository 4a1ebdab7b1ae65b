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


# AdamW makes whole steps of the rounding errors of tiny gradients: classifiers have biases whose gradient is zero.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("vae", 1e-5), ("ldm", 1e-5), ("phi", 2e-4), ("guide", 2e-4), ("decoder", 1e-5)]
)
def test_two_ranks_train_the_same_weights_as_one(chain, ranks, tmp_path, name, tolerance):
    stage, _ = chain.configs[name]
    config = chain.config(name, **({"seeds": [0, 1]} if name == "guide" else {}))
    config["duration"] = {"images": 16, "log_every_steps": 1}
    one, two = (ranks.run(stage, tmp_path / str(size), config, size) for size in (1, 2))
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(theirs[key] - ours[key]).square().sum() for key in ours]).sum().sqrt()
    size = torch.stack([value.square().sum() for value in ours.values()]).sum().sqrt()
    assert difference / size < tolerance
    for mine, other in zip(rows(one), rows(two), strict=True):
        assert mine.keys() == other.keys()
        figures = [
            key for key in mine if key.startswith(("loss/", "accuracy/", "logits/", "grad_norm/")) or key == "lr"
        ]
        assert {key: other[key] for key in figures} == pytest.approx({key: mine[key] for key in figures}, rel=2e-3)


@pytest.mark.slow
def test_two_ranks_train_in_bf16_and_draw_their_pictures(chain, ranks, tmp_path):
    config = chain.config("ldm", engine={"precision": "bf16"}, duration={"images": 4})
    run = ranks.run("train-ldm", tmp_path / "run", config, 2)
    assert rows(run)[0]["loss/diffusion"] == pytest.approx(rows(chain["ldm"])[0]["loss/diffusion"], rel=0.02)


def test_a_loss_that_is_not_finite_stops_every_rank(chain, ranks, tmp_path):
    config = chain.config("ldm", optim={"lr": 1e30, "clip_grad_norm": 0.0}, duration={"images": 40})
    ranks.run("train-ldm", tmp_path / "run", config, 2, code=2)
    assert ranks.said().count("loss is not finite at step 2 (rank 0: ") == 2


def test_a_batch_that_does_not_split_over_the_ranks_says_what_would(chain, ranks, tmp_path):
    batch = {"global_batch_size": 6, "micro_batch_size": 2}
    ranks.run("train-ldm", tmp_path / "run", chain.config("ldm", batch=batch), 2, code=2)
    assert "6 images are not a multiple of 2 (micro) × 2 (ranks); micro batch sizes that fit: 1, 3" in ranks.said()


@pytest.mark.parametrize(("name", "size"), [("latents", 2), ("labelled-latents", 3), ("candidates", 2)])
def test_any_number_of_ranks_writes_the_same_bytes(chain, ranks, tmp_path, name, size):
    stage, _ = chain.configs[name]
    run = ranks.run(stage, tmp_path / name, chain.config(name), size)
    assert tars(run) == tars(chain[name])
    assert read_manifest(run).identity == read_manifest(chain[name]).identity


def test_sampling_that_was_killed_goes_on_with_the_same_bytes(chain, ranks, tmp_path):
    run, config = tmp_path / "run", chain.config("candidates", samples_per_shard=2, solver={"steps": 10})
    finished = lambda: list((run / "shards").glob("*.json"))  # noqa: E731
    ranks.run("sample", run, config, 2, code=-9, signal_when=(signal.SIGKILL, finished))
    before = {path: path.stat().st_mtime_ns for path in finished()}
    assert 0 < len(before) < 6
    assert not (run / "manifest.json").exists()
    ranks.run("sample", run, config, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished shards were made again"
    whole = chain.make("candidates", tmp_path / "whole", samples_per_shard=2, solver={"steps": 10})
    assert tars(run) == tars(whole)
    assert read_manifest(run).identity == read_manifest(whole).identity
