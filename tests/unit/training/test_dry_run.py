"""`--dry-run` of the training stages: what it tells, and what it refuses before any queue."""

import io
import json
import re
import shutil

import pytest
import yaml
from tiny_chain import SIZE_PX

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EngineConfig
from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.formats.manifest import read_manifest
from hdtrain.stages import estimate as entry
from hdtrain.training.costs import Costs
from hdtrain.training.estimate import Estimate, significant, span
from hdtrain.training.rate import NotTried, Rate, try_steps
from hdtrain.training.workload import costs_of


@pytest.fixture
def dry_run(chain, cli, tmp_path):
    """`dry_run("vae", "--ranks", 2)`: the real command line with the chain's config."""

    def run(name, *args, code=0):
        stage, _ = chain.configs[name]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(chain.config(name)))
        return cli(stage, path, "--dry-run", "--out", tmp_path / "run", *args, code=code)

    return run


@pytest.fixture
def child(chain, monkeypatch, capsys, tmp_path):
    """What the command line starts for it, in this process: `child("ldm", "--rate=2").out`."""

    def run(name, *args, code=0, **changes):
        stage, _ = chain.configs[name]
        config = validate(STAGES[stage].config, chain.config(name, **changes), "test")
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(config.model_dump_json()))
        assert entry.main([stage, str(tmp_path / "run"), *args]) == code
        return capsys.readouterr()

    return run


def row(text: str, name: str) -> list[str]:
    """The cells of a table's row."""
    (line,) = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}\s{{2,}}", line)]
    return re.split(r"\s{2,}", line)


def test_a_dry_run_tells_size_work_batch_memory_disk_and_time_and_writes_nothing(dry_run, tmp_path):
    text = dry_run("vae", "--ranks", "2", "batch.micro_batch_size=1").stdout
    assert text.startswith(f"{tmp_path / 'run'} (train-vae): to do\n")
    assert re.fullmatch(r"[\d,]{6,}", row(text, "autoencoder")[1])
    assert float(row(text, "autoencoder")[3]) == pytest.approx(3 * float(row(text, "autoencoder")[2]), rel=0.02)
    assert row(text, "discriminator")[-1] == "from 8 images on"
    assert row(text, "global batch")[1] == "4 = 1 × 2 × 2 (micro batch × passes × ranks)"
    assert row(text, "steps")[1] == "4 (16 images)"
    stages = [row(text, str(stage)) for stage in range(4)]
    assert [cells[-1] == "← configured" for cells in stages] == [False, True, False, False]
    assert float(stages[3][1]) <= float(stages[0][1])
    assert "the newest 2 are kept" in row(text, "checkpoints")[1]
    assert re.fullmatch(r"[\d.]+ (s|min) for 16 images at [\d,.]+ images/s", row(text, "expected time")[1])
    assert "tried here" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "network"), [("ldm", "denoiser"), ("phi", "classifier"), ("guide", "classifier"), ("decoder", "decoder")]
)
def test_every_training_stage_has_a_dry_run_and_a_given_rate_is_taken(child, name, network):
    changes = {"batch": {"global_batch_size": 8}, "duration": {"images": 7200}}
    text = child(name, "--rate=0.5", "--ranks=2", **changes).out
    assert len(row(text, network)) > 3
    assert row(text, "expected time")[1] == "2.0 h for 7,200 images at 1 images/s"
    assert "0.5 images/s a rank, as given by --rate" in text


def test_a_rate_that_is_none_or_without_a_dry_run_is_refused(hdtrain, chain, capsys):
    with pytest.raises(SystemExit, match="2"):
        hdtrain("train-ldm", "--rate=-3", "--out", "run")
    assert "expected images a second above 0, got '-3'" in capsys.readouterr().err
    config = f"images=[{chain['unlabelled']}]", "duration.images=8", "perceptual={kind: none}"
    assert "give both" in hdtrain("train-vae", *config, "--rate=3", "--out", "run", code=2).err


def test_a_batch_that_does_not_divide_is_found_before_the_queue(dry_run):
    assert "4 images cannot be split over 3 ranks" in dry_run("vae", "--ranks", "3", code=2).stderr


def test_a_vae_of_other_latents_is_found_before_the_queue(child, chain):
    assert "the VAE does not match the latents" in child("ldm", code=2, vae=str(chain["other-vae"])).err


def test_a_classifier_of_latents_for_the_decoder_is_found_before_the_queue(child, chain):
    assert "adapt-decoder needs φ" in child("decoder", code=2, classifier=str(chain["guide"])).err


def test_unlabelled_images_for_a_classifier_are_found_before_the_queue(child, chain):
    reader = {"resolution": SIZE_PX}
    model = {"kind": "image", "images": [str(chain["unlabelled"])], "preset": "lae-tiny", "reader": reader}
    assert "is unlabelled" in child("phi", code=2, model=model).err


def estimated(chain, name, directory=None, ranks=1, **changes) -> Estimate:
    stage, _ = chain.configs[name]
    return entry.estimate(stage, chain.config(name, **changes), directory or chain.root / "nowhere", ranks, None)


def test_the_rate_of_an_earlier_attempt_is_used_and_its_images_are_done(chain, tmp_path):
    shutil.copytree(chain["ldm"], tmp_path / "ldm")
    rows = [
        {"step": step, "images": 4 * step, "time": 0.0, "images_per_sec": rate}
        for step, rate in ((1, 7), (2, 8), (3, 9))
    ]
    (tmp_path / "ldm" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = estimated(chain, "ldm", tmp_path / "ldm", ranks=2)
    assert found.rate == Rate(16.0, "as logged in ldm on 1 rank")
    assert "for 4 images at 16 images/s" in str(found)
    assert "none: all 16 images have been seen" in str(estimated(chain, "ldm", chain["ldm"]))


def test_the_figures_of_another_run_in_the_same_folder_are_not_used(chain, monkeypatch):
    monkeypatch.setattr(entry, "try_steps", lambda *_: NotTried("asked"))
    found = estimated(chain, "ldm", chain["ldm"], seed=17)
    assert found.rate == NotTried("asked")
    assert found.images_seen == 0


def costs(chain, name) -> tuple[Costs, EngineConfig]:
    stage, tree = chain.configs[name][0], chain.config(name)
    config = validate(STAGES[stage].config, tree, "test")
    return costs_of(config, lambda path: read_manifest(path)), config.engine


def test_the_rate_that_is_tried_is_that_of_all_ranks_on_this_cpu(chain):
    of, engine = costs(chain, "ldm")
    alone = try_steps(of, engine, BatchPlan(8, 8, 1, 1), entry.device(), budget_sec=3)
    assert isinstance(alone, Rate)
    assert 0 < alone.images_per_sec < 1e6
    assert "on the CPU" in alone.how


def test_what_takes_too_long_to_try_is_not_tried(chain):
    of, engine = costs(chain, "ldm")
    found = try_steps(of, engine, BatchPlan(8, 8, 1, 1), entry.device(), budget_sec=1e-9)
    assert isinstance(found, NotTried)
    assert "too slow to try" in found.reason


def test_a_large_model_is_compared_with_a_published_training(tmp_path):
    tree = {
        "images": ["a"],
        "perceptual": {"kind": "none"},
        "duration": {"images": 1_000_000},
        "adversarial": {"weight": 0},
    }
    config = validate(STAGES["train-vae"].config, {**tree, "batch": {"global_batch_size": 64}}, "test")
    plan = BatchPlan.from_config(config.batch, 8)
    text = str(Estimate(config, plan, costs_of(config, None), tmp_path, entry.device(), NotTried("no reason")))
    assert "1,015.9   3,047.8" in text
    assert "unknown: no reason" in text
    rate = 310e12 / 3047.8e9
    assert (
        f"{span(1e6 / 8 / rate)} on 8 H200, each with {significant(rate)} images/s: the 310 TFLOP/s of MLPerf" in text
    )


def test_spans_are_said_in_the_unit_that_fits():
    assert [span(s) for s in (0.25, 100, 3600, 4 * 3600, 86400 * 4.1, 86400 * 1393)] == [
        "0.2 s",
        "100.0 s",
        "60.0 min",
        "4.0 h",
        "4.1 days",
        "1,393 days",
    ]
