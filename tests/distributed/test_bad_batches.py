"""A batch that is not finite on one rank: who is told, what stays, what goes on."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.data.latents import TrainingLatents
from hdtrain.formats.checkpoint import find_latest, read_meta
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.records import RecordReader

STEPS, BATCH = 10, 4
DURATION = {
    "images": STEPS * BATCH,
    "checkpoint_every_images": 2 * BATCH,
    "visualise_every_images": 1000 * BATCH,
    "log_every_steps": 1,
}


@pytest.fixture(scope="module")
def poisoned(chain, tmp_path_factory):
    """`poisoned(value)`: the latents with one element of one record replaced; and that record's key."""

    def make(value: float):
        run = tmp_path_factory.mktemp("poisoned") / "latents"
        shutil.copytree(chain["latents"], run)
        shard = min((run / "shards").glob("*.tar"))
        reader = RecordReader(shard)
        with shard.open("r+b") as stream:
            stream.seek(int(reader.offsets[2]))
            stream.write(np.float16(value).tobytes())
        return run, reader.sidecar.keys[2]

    return make


def place_of(latents, key: str) -> tuple[int, int]:
    """The step, from 1, and the rank of two that see a sample first."""
    source = TrainingLatents([(latents, read_manifest(latents))], 0)
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=BATCH), 2)
    for step in range(STEPS):
        for rank in range(2):
            if key in source.batch(plan.positions(step, 0, rank)).keys:
                return step + 1, rank
    raise AssertionError(f"{key} is never seen")


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "fp32"), (np.inf, "fp32"), (np.nan, "bf16")])
def test_the_rank_and_the_keys_of_a_bad_batch_are_named(chain, ranks, poisoned, tmp_path, value, precision):
    latents, key = poisoned(value)
    step, rank = place_of(latents, key)
    run, engine = tmp_path / "run", {"precision": precision}
    config = chain.config("ldm", latents=str(latents), duration=DURATION, engine=engine)
    ranks.run("train-ldm", run, config, 2, code=2)
    said = ranks.said()
    assert f"train-ldm: loss is not finite at step {step} (rank {rank}: loss/diffusion nan" in said
    named = said.split("keys of the batch: ")[1].split(")")[0].split(", ")
    assert len(named) == BATCH // 2
    assert key in named
    saved = find_latest(run / "checkpoints")
    assert f"last good checkpoint: {saved or 'none'}" in said
    assert not (run / "manifest.json").exists()
    for path in saved.glob("*.safetensors") if saved else ():
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.slow
def test_passed_over_it_comes_to_an_end_with_finite_weights_and_says_how_often(chain, ranks, poisoned, tmp_path):
    latents, key = poisoned(np.nan)
    first, _ = place_of(latents, key)
    guard = {"skip_batches": 2}
    run = tmp_path / "run"
    config = chain.config("ldm", latents=str(latents), duration=DURATION, guard=guard)
    ranks.run("train-ldm", run, config, 2)
    assert ranks.said().count("passed over") == 2  # 20 latents: seen twice in 40 images
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counts = [row.get("skipped_batches", 0) for row in rows]
    assert (counts.index(1) + 1, counts[-1]) == (first, 2)
    assert all(torch.isfinite(value).all() for value in load_file(next((run / "model").glob("*.safetensors"))).values())
    meta = read_meta(find_latest(run / "checkpoints"))
    assert (meta["steps"], meta["guard"]["skipped"]) == ({"denoiser": STEPS - 2}, 2)

    cut = tmp_path / "cut"
    middle = (
        signal.SIGTERM,
        lambda: (cut / "metrics.jsonl").exists() and "skipped" in (cut / "metrics.jsonl").read_text(),
    )
    ranks.run("train-ldm", cut, config, 2, code=3, signal_when=middle)
    ranks.run("train-ldm", cut, config, 2)
    last = f"checkpoints/step-{STEPS:08d}"
    for path in sorted((run / last).iterdir()):
        assert path.read_bytes() == (cut / last / path.name).read_bytes(), path.name


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_anywhere(ranks, zero_stage):
    ranks.call("on_ranks:refused_on_one_rank", zero_stage, ranks=2)
