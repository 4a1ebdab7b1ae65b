"""`--cluster local` under the rules of SLURM's jobs: time limit, requeue, cancel, code and configs as submitted."""

from pathlib import Path

import pytest
import yaml
from test_local import probe, read, wait_for, write_recipe  # noqa: F401

from hdtrain.formats.submission import read_attempts, submissions
from launchers.local_queue import read_state

FIVE_SEC = {"kind": "local", "resources": {"here": {"time": 1}}, "signal_sec": 55, "min_free_gb": 0.001}
REPOSITORY = Path(__file__).parents[3]
OVER = ("ended", "failed", "cancelled")


@pytest.fixture
def launch(cli, probe, tmp_path):  # noqa: F811
    """Submit a recipe of `probe` stages; gives what tells the state of a job, and waits for it."""

    def run(profile: dict | None = None, **then: str):
        write_recipe(tmp_path, **then)
        (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile or {}))
        cli("launch", "recipe.yaml", "--cluster", "profile.yaml" if profile else "local", env=probe)
        place = submissions(tmp_path / "out")[-1]

        def state(name: str, *kinds: str):
            return wait_for(lambda: (now := read_state(place, name, 0)[0]) and now.kind in (kinds or OVER) and now)

        return place, state

    return run


def test_time_is_up_the_stage_saves_and_its_next_attempt_goes_on_as_it_was_submitted(launch, tmp_path):
    place, state = launch(FIVE_SEC, one="resume", two="publish")
    wait_for(lambda: read(tmp_path / "out/one/pid-0"))
    decoy = tmp_path / "launchers/__init__.py"  # as in a checkout from which jobs are submitted
    decoy.parent.mkdir()
    decoy.write_text("raise RuntimeError('not the submitted code')\n")
    write_recipe(tmp_path, one="refuse", two="refuse")
    (tmp_path / "profile.yaml").write_text("nonsense")
    assert state("one").word == "COMPLETED"
    assert state("two").word == "COMPLETED"
    attempts = read_attempts(place, "one")
    assert [(one["event"], one["restarts"], one.get("code")) for one in attempts] == [
        ("begin", 0, None), ("end", 0, 3), ("begin", 1, None), ("end", 1, 0),
    ]  # fmt: skip
    begins = [one for one in [*attempts, *read_attempts(place, "two")] if one["event"] == "begin"]
    assert [one["code_from"] for one in begins] == [str(place.code)] * 3
    assert (tmp_path / "out/one/manifest.json").exists()
    assert "rank 0 of 1" in read(tmp_path / "out/one/logs/002.log")
    assert not list((place.path / "requeue").iterdir())
    assert yaml.safe_load(read(tmp_path / "out/two/config.yaml")) == {"then": "publish"}
    assert (place.code / "hdtrain/errors.py").read_bytes() == (REPOSITORY / "hdtrain/errors.py").read_bytes()


def test_a_job_that_never_gets_further_is_failed_after_max_restarts(launch):
    place, state = launch({**FIVE_SEC, "max_restarts": 1}, one="wait")
    assert state("one").word == "FAILED"
    assert read_attempts(place, "one")[-1]["message"] == "requeued 1 times, and max_restarts allows no more"


def test_a_cancelled_job_saves_and_is_not_requeued_and_one_that_waits_never_begins(launch, cli, probe, tmp_path):  # noqa: F811
    place, state = launch(one="wait", two="publish")
    wait_for(lambda: read(tmp_path / "out/one/pid-0"))
    cli("cancel", "out", env=probe)
    assert state("one").word == state("two").word == "CANCELLED"
    assert (tmp_path / "out/one/saved-0").exists()
    assert read_attempts(place, "one")[-1]["message"] == "cancelled, after saving"
    assert not (tmp_path / "out/two").exists()
    wait_for((place.path / "controller.ended").exists)


@pytest.mark.slow
def test_jobs_that_need_nothing_of_each_other_run_at_once_up_to_max_jobs(launch, tmp_path):
    place, state = launch({**FIVE_SEC, "max_jobs": 2}, one="resume", two="resume", three="wait")
    wait_for(lambda: read(tmp_path / "out/one/pid-0") and read(tmp_path / "out/two/pid-0"))
    assert read_state(place, "three", 0)[0].word == "PENDING"
    place.cancelled("three").touch()
    assert state("three").word == "CANCELLED"
    assert state("one").word == state("two").word == "COMPLETED"


def test_the_same_command_again_leaves_what_is_in_the_queue_and_refuses_another_config(launch, cli, probe, tmp_path):  # noqa: F811
    _, state = launch(one="wait", two="publish")
    again = ("launch", "recipe.yaml", "--cluster", "local")
    said = cli(*again, env=probe).stdout
    assert f"nothing to submit in {tmp_path}/out: 2 in the queue already" in said
    error = cli(*again, "two.then=crash", env=probe, code=2).stderr
    assert "two is in the queue (job local:" in error
    assert "with another config" in error
    assert len(submissions(tmp_path / "out")) == 1
    cli("cancel", "out", env=probe)
    assert state("one").word == "CANCELLED"


@pytest.mark.slow
def test_a_training_cut_off_by_its_time_limit_ends_with_the_same_weights(chain, cli, tmp_path):
    steps = {"global_batch_size": 4}
    config = {**chain.config("ldm"), "batch": steps, "duration": {"images": 8, "log_every_steps": 1}}
    (tmp_path / "ldm.yaml").write_text(yaml.safe_dump(config))
    profile = {"kind": "local", "resources": {"here": {"time": 1}}, "signal_sec": 10, "min_free_gb": 0.001}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    cli("launch", "train-ldm", "ldm.yaml", "--out", "cut/ldm", "--cluster", "profile.yaml")
    place = submissions(tmp_path / "cut")[0]
    state = wait_for(lambda: (now := read_state(place, "ldm", 0)[0]) and now.kind in OVER and now, 120)
    assert state.word == "COMPLETED", read_attempts(place, "ldm")
    assert [one["code"] for one in read_attempts(place, "ldm") if one["event"] == "end"] == [3, 0]
    whole = chain.make("ldm", tmp_path / "whole", **{key: config[key] for key in ("batch", "duration")})
    weights = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors") if "checkpoints" not in str(path))
    assert weights
    for name in weights:
        assert (tmp_path / "cut/ldm" / name).read_bytes() == (whole / name).read_bytes()
