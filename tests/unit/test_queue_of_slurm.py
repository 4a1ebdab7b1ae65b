"""`hdtrain status|cancel|retry|logs` of jobs in a SLURM whose commands print what SLURM printed. A real one is in
`tests/slurm`.
"""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitted_runs import kinds

from hdtrain.distributed.world import World
from hdtrain.formats.submission import SubmissionDir, submissions
from launchers.allocation import Allocation
from launchers.task import Record

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> {folder}/calls
case $(basename "$0") in
sbatch) [ "$*" != --test-only ] || exit 0
  n=$(($(cat {folder}/id 2>/dev/null || echo 100) + 1)); echo $n > {folder}/id; echo "Submitted batch job $n";;
squeue) [ ! -e {folder}/down ] || {{ echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }}
  cat {folder}/squeue;;
sacct) cat {folder}/sacct;;
esac
"""


class FakeSlurm:
    """Commands of SLURM's that note how they were called, and print what they are told to."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "calls").touch()
        self.says()
        for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
            self._add(name)

    def _add(self, name: str) -> None:
        (self.bin / name).write_text(FAKE.format(folder=self.folder))
        (self.bin / name).chmod(0o755)

    def says(self, *lines: str) -> None:
        (self.folder / "squeue").write_text("".join(f"{line}\n" for line in lines))

    def accounts(self, *lines: str) -> None:
        self._add("sacct")
        (self.folder / "sacct").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.split()[0] == name]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    folders = [part for part in os.environ["PATH"].split(":") if not (Path(part) / "squeue").exists()]
    (tmp_path / "slurm/rest").mkdir()
    for name in ("sh", "cat", "basename"):  # of the folders left out
        (tmp_path / "slurm/rest" / name).symlink_to(f"/bin/{name}" if name != "basename" else "/usr/bin/basename")
    monkeypatch.setenv("PATH", ":".join([str(fake.bin), *folders, str(tmp_path / "slurm/rest")]))
    profile = {"resources": {"cpu": {"time": 30}}, "min_free_gb": 0}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(profile))
    return fake


@pytest.fixture
def submitted(slurm: FakeSlurm, recipe: Path, hdtrain, tmp_path: Path) -> SubmissionDir:
    """Jobs 101 to 103."""
    hdtrain("launch", recipe, "--cluster", "cluster.yaml")
    return submissions(tmp_path / "runs/demo")[0]


def note(place: SubmissionDir, job: str, job_id: str, restarts: int, *ends: Any) -> None:
    """What a job writes down of an attempt, in its own way."""
    record = Record(place, job, Allocation(World(), ("node1",), 1, job_id, restarts))
    record.begin()
    if ends:
        record.end(*ends)


def test_the_reason_to_wait_is_told_in_words_and_the_queue_is_asked_once(submitted, slurm, hdtrain, states):
    slurm.says(
        "101|PENDING|Resources||2026-11-22T14:05:00|x",
        "102|PENDING|Dependency||N/A|x",
        "103|PENDING|Dependency||N/A|x",
    )
    found = states("runs/demo")
    assert kinds(found) == {"shards": "waiting"} | dict.fromkeys(["smaller", "smallest"], "not begun")
    assert found["shards"]["detail"] == "no nodes are free yet (Resources)"
    assert found["shards"]["job"]["begins"] == "2026-11-22T14:05:00"
    assert found["smaller"]["detail"] == "waits for shards"
    assert len(slurm.calls("squeue")) == 1
    shown = hdtrain("status", "runs/demo").out
    assert "shards: no nodes are free yet (Resources); expected to begin at 2026-11-22 14:05:00" in shown
    assert re.search(r"^smaller +reshard +102 +not begun: waits for shards$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs go first (Priority)"),
        ("QOSMaxJobsPerUserLimit", "a limit of its account or QOS holds it back (QOSMaxJobsPerUserLimit)"),
        ("AssocGrpGRES", "a limit of its account or QOS holds it back (AssocGrpGRES)"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "nodes that it needs are down or reserved"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reasons_known_and_unknown(submitted, slurm, states, reason, words):
    slurm.says(f"101|PENDING|{reason}||N/A|x")
    assert states("runs/demo/shards")["shards"]["detail"].startswith(words)


def test_a_parent_that_is_published_and_still_in_the_queue_is_no_unnamed_other_job(submitted, slurm, hdtrain, states):
    hdtrain("shard", "sources=[{path: raw}]", "--out", "runs/demo/shards")
    slurm.says("101|COMPLETING|None|node1|N/A|x", *(f"{job}|PENDING|Dependency||N/A|x" for job in (102, 103)))
    found = states("runs/demo")
    assert kinds(found) == {"shards": "published", "smaller": "waiting", "smallest": "not begun"}
    assert found["smaller"]["detail"] == "what it waits for is published; it begins when that job has left the queue"
    assert found["smallest"]["detail"] == "waits for smaller"


def test_a_node_that_failed_is_no_failed_job_while_it_is_in_the_queue(submitted, slurm, hdtrain, states):
    note(submitted, "shards", "101", 0, 3)
    note(submitted, "shards", "101", 1)
    slurm.says("101|NODE_FAIL|None|node1|N/A|x")
    found = states("runs/demo/shards")["shards"]
    assert (found["state"], found["detail"]) == ("waiting", "its node failed, and it begins again")
    assert found["job"]["requeued"] == 1
    slurm.says("101|RUNNING|None|node2|N/A|x")
    shown = hdtrain("status", "runs/demo").out
    assert re.search(r"^shards +shard +101 +running, requeued once", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("101|NODE_FAIL|None|node1|1:0", "its node failed (NODE_FAIL)"),
        ("101|OUT_OF_MEMORY|None|node1|0:125", "out of memory (OUT_OF_MEMORY)"),
        ("101|TIMEOUT|None|node1|0:0", "its time limit came before it had saved (TIMEOUT)"),
        ("101|FAILED|NonZeroExitCode|node1|2:0", "exit code 2"),
        ("101|FAILED|RaisedSignal:9|node1|0:9", "killed by SIGKILL"),
    ],
)
def test_accounting_tells_how_a_job_ended(submitted, slurm, states, line, words):
    note(submitted, "shards", "101", 0)
    slurm.accounts(line, *(f"{job}|CANCELLED by 0|Dependency||0:0" for job in (102, 103)))
    found = states("runs/demo")
    assert (found["shards"]["state"], found["shards"]["detail"]) == ("failed", words)
    assert kinds(found)["smallest"] == "will not run"


def test_without_accounting_the_jobs_own_record_tells(submitted, slurm, hdtrain, states, tmp_path):
    found = states("runs/demo")
    assert (found["shards"]["state"], found["shards"]["detail"]) == (
        "failed",
        "gone from the queue, and it never began",
    )

    note(submitted, "shards", "101", 0)
    job = submitted.job("shards")
    (job / "101_0_log.out").write_text("beginning\n")
    (job / "101_0_log.err").write_text("ValueError: bad\nslurmstepd: done\n")
    found = states("runs/demo")
    assert (found["shards"]["state"], found["shards"]["message"]) == ("killed", "ValueError: bad")
    assert found["shards"]["log"] == str(job / "101_0_log.err")
    assert found["smaller"]["detail"] == "shards failed"
    assert "ValueError: bad" in hdtrain("logs", "runs/demo").out
    both = hdtrain("logs", "runs/demo/shards", "--rank", 0).out
    assert both == (
        f"==> {job}/101_0_log.out <==\nbeginning\n==> {job}/101_0_log.err <==\nValueError: bad\nslurmstepd: done\n"
    )
    assert hdtrain("logs", "runs/demo/shards", "--lines", 1).out == "slurmstepd: done\n"

    note(submitted, "shards", "101", 1, 1, "the disk is full")
    found = states("runs/demo")
    assert (found["shards"]["state"], found["shards"]["message"]) == ("failed", "the disk is full")

    hdtrain("shard", "sources=[{path: raw}]", "--out", "runs/demo/shards")
    assert kinds(states("runs/demo"))["shards"] == "published"


def test_a_queue_that_cannot_be_asked_is_a_warning_and_the_files_still_tell(submitted, slurm, hdtrain, tmp_path):
    hdtrain("shard", "sources=[{path: raw}]", "--out", "runs/demo/shards")
    (slurm.folder / "down").touch()
    said = hdtrain("status", "runs/demo")
    assert said.err.count("\n") == 1
    assert re.match(r"warning: the queue \(slurm\) cannot be asked, .*Unable to contact slurm controller", said.err)
    assert re.search(r"^shards +shard +101 +published +1 shard", said.out, re.MULTILINE)
    assert re.search(r"^smaller +reshard +102 +not begun", said.out, re.MULTILINE)
    for command in ("retry", "cancel"):
        assert "cannot be asked: squeue" in hdtrain(command, "runs/demo", code=2).err


def test_cancel_marks_before_it_cancels_and_names_what_waited(submitted, slurm, hdtrain, states):
    slurm.says("101|RUNNING|None|node1|N/A|x", *(f"{job}|PENDING|Dependency||N/A|x" for job in (102, 103)))
    assert "--only: no job 'smallr'; did you mean 'smaller'?" in (
        hdtrain("cancel", "runs/demo", "--only", "smallr", code=2).err
    )
    said = hdtrain("cancel", "runs/demo", "--only", "smaller").out
    assert re.search(r"^smaller +102 +was waiting$", said, re.MULTILINE)
    assert "will not run, since they wait for these: smallest" in said
    assert submitted.cancelled("smaller").exists()
    assert not submitted.cancelled("shards").exists()
    assert {word for call in slurm.calls("scancel") for word in call.split() if word.isdecimal()} == {"102"}

    slurm.says("101|RUNNING|None|node1|N/A|x")
    found = states("runs/demo")
    assert kinds(found) == {"shards": "running", "smaller": "cancelled", "smallest": "will not run"}
    hdtrain("cancel", "runs/demo")
    assert submitted.cancelled("shards").exists()
    assert states("runs/demo")["shards"]["detail"] == "was cancelled: it saves, and ends"
    assert re.search(r"^shards +shard +101 +running, cancelled$", hdtrain("status", "runs/demo").out, re.MULTILINE)


def test_a_retry_waits_for_what_is_still_in_the_queue(submitted, slurm, hdtrain, tmp_path):
    slurm.says("101|RUNNING|None|node1|N/A|x")
    submitted.cancelled("smaller").parent.mkdir(exist_ok=True)
    submitted.cancelled("smaller").touch()
    hdtrain("retry", "runs/demo")
    again = submissions(tmp_path / "runs/demo")[1].read()
    assert [(job.name, job.after, job.after_ids, job.ids) for job in again.jobs] == [
        ("smaller", [], ["101"], ["104"]),
        ("smallest", ["smaller"], [], ["105"]),
    ]
    scripts = [path.read_text() for path in sorted((tmp_path / "runs/demo/.launch/002/jobs").rglob("*.sh"))]
    assert any("afterok:101" in text for text in scripts)
    assert any("afterok:104" in text for text in scripts)


def test_runs_of_several_submissions_are_retried_each_with_its_own_code(submitted, slurm, recipe, hdtrain, tmp_path):
    slurm.accounts("101|FAILED|None|node1|1:0", "102|CANCELLED|Dependency||0:0", "103|CANCELLED|Dependency||0:0")
    hdtrain("launch", recipe, "--cluster", "cluster.yaml", "--only", "shards")
    slurm.accounts("104|FAILED|None|node1|1:0")
    hdtrain("retry", "runs/demo")
    record = [place.read() for place in submissions(tmp_path / "runs/demo")]
    assert [one.retry_of for one in record] == [None, None, "002", "001"]
    assert [(job.name, job.after, job.after_ids, job.ids) for one in record[2:] for job in one.jobs] == [
        ("shards", [], [], ["105"]),
        ("smaller", [], ["105"], ["106"]),
        ("smallest", ["smaller"], [], ["107"]),
    ]


def test_of_an_array_the_elements_are_summed_and_only_those_that_failed_retried(slurm, hdtrain, states, tmp_path):
    (tmp_path / "raw").mkdir()
    make = {"name": "s", "stages": {"out": {"stage": "shard", "config": {"sources": [{"path": "raw"}]}}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(make))
    hdtrain("launch", "s.yaml", "--cluster", "cluster.yaml", "--out", "runs/s")
    place = submissions(tmp_path / "runs/s")[0]
    record = place.read()
    job = record.jobs[0].model_copy(update={"elements": 4, "ids": [f"101_{i}" for i in range(4)]})  # as of `sample`
    place.write(record.model_copy(update={"jobs": [job]}))
    slurm.says(*(f"101_{i}|RUNNING|None|node{i}|N/A|x" for i in range(2)), "101_2|PENDING|Resources||N/A|x")
    slurm.accounts("101_3|FAILED|None|node1|1:0")
    found = states("runs/s")["out"]
    assert found["job"]["elements"] == {"running": 2, "waiting": 1, "failed": 1}
    assert re.search(r"^out +shard +101_0 … 3 +running, 2 of 4", hdtrain("status", "runs/s").out, re.MULTILINE)
    assert "out: 1 elements failed" in hdtrain("retry", "runs/s").out

    slurm.says()
    slurm.accounts(
        "101_0|COMPLETED|None|node1|0:0", "101_1|COMPLETED|None|node1|0:0",
        "101_2|TIMEOUT|None|node1|0:0", "101_3|FAILED|None|node1|1:0",
    )  # fmt: skip
    note(place, "out", "101", 0, 1, "bad")
    found = states("runs/s")["out"]
    assert (found["state"], found["detail"]) == (
        "failed",
        "2 of 4 elements: its time limit came before it had saved (TIMEOUT)",
    )
    hdtrain("retry", "runs/s")
    again = submissions(tmp_path / "runs/s")[1].read().jobs[0]
    assert (again.elements, again.ids) == (2, ["102_0", "102_1"])


def test_a_published_run_of_old_is_not_taken_for_the_job_that_waits(slurm, recipe, hdtrain, states, tmp_path):
    hdtrain("shard", "sources=[{path: raw}]", "--out", "runs/demo/shards")
    os.utime(tmp_path / "runs/demo/shards/manifest.json", (time.time() - 1000, time.time() - 1000))
    hdtrain("launch", recipe, "--cluster", "cluster.yaml", "shards.samples_per_shard=3")
    slurm.says("101|PENDING|Priority||N/A|x")
    assert kinds(states("runs/demo"))["shards"] == "waiting"
