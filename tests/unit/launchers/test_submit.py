"""Submitting to SLURM: what lies in the folder, and what happens when SLURM refuses a job."""

import pytest
import yaml
from submitted_runs import recipe  # noqa: F401

from hdtrain.config.load import read_yaml
from hdtrain.formats.submission import newest_jobs, submissions

SBATCH = """#!/bin/bash
# Takes jobs 101, 102, … and refuses the one after `REFUSED_AFTER`; would never begin one with `NEVER` in its script.
if [ "$*" = --test-only ]; then
  grep -q -e "${{NEVER:-no such line}}" || exit 0
  echo "allocation failure: $REASON" >&2; exit 1
fi
count=$(($(cat {folder}/count 2>/dev/null || echo 100) + 1))
[ $count -le ${{REFUSED_AFTER:-999}} ] || {{
  echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1; }}
echo $count > {folder}/count
cp "${{@: -1}}" {folder}/script-$count
env | grep -E '^(SLURM_JOB_ID|RANK|SBATCH_RESERVATION)=' > {folder}/environment-$count
echo "Submitted batch job $count"
"""

PROFILE = "resources: {cpu: {}, big: {constraint: h200}}\nmin_free_gb: 0.001\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands named as SLURM's: sbatch takes jobs, scancel writes down whom it was told to end."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scancel = f'#!/bin/sh\necho "$@" >> {folder}/cancelled\n'
    texts = {"sbatch": SBATCH.format(folder=folder), "scancel": scancel, "squeue": "#!/bin/sh\n"}
    for name in ("sbatch", "scancel", "squeue", "scontrol", "srun", "sacct"):  # sacct: without accounting
        (folder / name).write_text(texts.get(name, "#!/bin/sh\nexit 1\n"))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    profile = {"resources": {"cpu": {}}, "min_free_gb": 0.001}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    return folder


def test_a_submission_holds_code_configs_and_a_record_with_ids(recipe, slurm, hdtrain, tmp_path):  # noqa: F811
    said = hdtrain("launch", recipe, "--cluster", "profile.yaml").out
    place = submissions(tmp_path / "runs/demo")[0]
    record = place.read()
    assert [(job.name, job.ids, job.after) for job in record.jobs] == [
        ("shards", ["101"], []), ("smaller", ["102"], ["shards"]), ("smallest", ["103"], ["smaller"]),
    ]  # fmt: skip
    assert f"submission: {place.path}" in said
    assert (place.code / "launchers/requeue.sh").exists()
    assert not list(place.code.rglob("__pycache__"))
    assert read_yaml(place.config("smaller"))["images"] == [str(tmp_path / "runs/demo/shards")]
    scripts = [(slurm / f"script-{number}").read_text() for number in (101, 102, 103)]
    assert "dependency" not in scripts[0]
    assert "--dependency=afterok:101\n" in scripts[1]
    assert "--dependency=afterok:102\n" in scripts[2]
    assert f"export PYTHONPATH={place.code}" in scripts[0]
    assert not list((tmp_path / "runs/demo").glob("sh*"))


def test_a_refused_job_takes_back_those_that_were_sent(recipe, slurm, hdtrain, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("REFUSED_AFTER", "102")
    said = hdtrain("launch", recipe, "--cluster", "profile.yaml", code=2).err
    assert "smallest: SLURM did not take the job: " in said
    assert "Invalid account" in said
    assert set((slurm / "cancelled").read_text().split()) >= {"101", "102"}
    monkeypatch.delenv("REFUSED_AFTER")
    hdtrain("launch", recipe, "--cluster", "profile.yaml")
    newest = newest_jobs(tmp_path / "runs/demo")
    assert {name: job.ids for name, (_, _, job) in newest.items()} == {
        "shards": ["103"], "smaller": ["104"], "smallest": ["105"],
    }  # fmt: skip
    assert {place.path.name for place, _, _ in newest.values()} == {"002"}


def test_what_slurm_would_refuse_is_told_of_all_jobs_before_the_first_is_sent(
    recipe,  # noqa: F811
    slurm,
    hdtrain,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("NEVER", "^#SBATCH --constraint=h200")
    monkeypatch.setenv("REASON", "Invalid feature specification")
    (tmp_path / "profile.yaml").write_text(PROFILE + "stages: {reshard: big}\n")
    for more in ([], ["--dry-run"]):
        said = hdtrain("launch", recipe, "--cluster", "profile.yaml", *more, code=2).err
        assert "error: profile.yaml: 2 problems" in said
        assert "smaller: SLURM would not take the job, or never begin it: Invalid feature specification\n" in said
        assert "smallest: SLURM would not" in said
        assert not (tmp_path / "runs").exists()


def test_nodes_that_may_only_be_down_are_a_warning_and_the_job_is_sent(recipe, slurm, hdtrain, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("NEVER", "^#SBATCH --constraint=h200")
    monkeypatch.setenv("REASON", "Requested node configuration is not available")
    (tmp_path / "profile.yaml").write_text(PROFILE + "stages: {reshard: big}\n")
    assert (
        "are down, or there are none such"
        in hdtrain("launch", recipe, "--cluster", "profile.yaml", "--dry-run", code=2).err
    )
    said = hdtrain("launch", recipe, "--cluster", "profile.yaml")
    assert "warning: smaller: SLURM would not take the job" in said.err
    assert newest_jobs(tmp_path / "runs/demo")["smallest"][2].ids == ["103"]


def test_a_dry_run_says_whether_slurm_could_be_asked(recipe, slurm, hdtrain, tmp_path, monkeypatch):  # noqa: F811
    asked = ("launch", recipe, "--cluster", "profile.yaml", "--dry-run")
    assert "SLURM would take them" in hdtrain(*asked).out
    monkeypatch.setenv("NEVER", "#SBATCH")
    monkeypatch.setenv("REASON", "Unable to contact slurm controller (connect failure)")
    assert "not held against the cluster: SLURM cannot be asked: " in hdtrain(*asked).out
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not held against the cluster: sbatch is not found here" in hdtrain(*asked).out


def test_a_job_that_submits_others_does_not_hand_its_own_place_on(recipe, slurm, hdtrain, monkeypatch):  # noqa: F811
    for name, value in (("SLURM_JOB_ID", "7"), ("RANK", "3"), ("SBATCH_RESERVATION", "night")):
        monkeypatch.setenv(name, value)
    hdtrain("launch", recipe, "--cluster", "profile.yaml")
    assert (slurm / "environment-101").read_text().split() == ["SBATCH_RESERVATION=night"]


def test_where_there_is_no_slurm_it_is_said_before_anything_is_written(recipe, hdtrain, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "profile.yaml").write_text("resources: {cpu: {}}\nmin_free_gb: 0.001\n")
    monkeypatch.setenv("PATH", "/nowhere")
    said = hdtrain("launch", recipe, "--cluster", "profile.yaml", code=2).err
    assert "error: no SLURM here: sbatch, squeue, scancel, scontrol, srun not found" in said
    assert not (tmp_path / "runs").exists()
