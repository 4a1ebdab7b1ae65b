"""What sbatch gets, whole, held against tests/golden/sbatch. After a change that is meant:

HDTRAIN_WRITE_GOLDEN=1 pytest tests/unit/launchers/test_sbatch_text.py, and read the diff.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hdtrain.config.cluster import ClusterConfig, Resources
from hdtrain.formats.submission import Job, SubmissionDir
from launchers.slurm import SlurmQueue
from launchers.submit import describe

GOLDEN = Path(__file__).parents[2] / "golden" / "sbatch"
GPU = {"nodes": 2, "gpus_per_node": 8, "cpus_per_task": 12, "time": "1-00:00:00", "mem_gb": 900}
PLACES = {"partition": "gpu", "account": "histo"}
CONTAINER = {
    "container": {"image": "/images/hd train.sif", "options": ["--nv", "--bind", "/shared"]},
    "setup": ["module load apptainer"],
    "environment": {"NCCL_SOCKET_IFNAME": "ib0", "WORDS": "two words; $HOME"},
    "scratch": "/scratch/$SLURM_JOB_ID",
}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], int, list[str]]] = {
    # name: profile beside resources, stage, resources, elements or runs of a sweep, ids that it waits for
    "training-on-two-nodes": (PLACES, "train-ldm", GPU, 1, ["101", "102"]),
    "sample-array": (PLACES, "sample", {"gpus_per_node": 1, "array": 16, "array_parallel": 4}, 16, ["103"]),
    "shard-array": ({"qos": "low"}, "shard", {"cpus_per_task": 32, "array": 8}, 8, ["103"]),
    "cpu-shard": ({"qos": "low"}, "shard", {"cpus_per_task": 32, "options": {"exclusive": True, "nice": 5}}, 1, []),
    "container": ({**PLACES, **CONTAINER}, "train-vae", {"gpus_per_node": 8, "constraint": "h200|h100"}, 1, []),
    "elastic": ({"signal_sec": 300}, "train-ldm", {**GPU, "max_nodes": 4, "mem_gb": None}, 1, []),
    "sweep": (PLACES, "train-ldm", GPU, -3, ["104_0", "104_1"]),
}


def text_of(name: str, folder: Path) -> str:
    more, stage, wanted, count, after = CASES[name]
    profile = ClusterConfig.model_validate({**more, "resources": {"all": wanted}})
    resources: Resources = profile.resources_of("ldm", stage, True)
    names = ["ldm"] if count > 0 else [f"{index:03d}-lr=0.1" for index in range(-count)]
    jobs = [
        Job(
            name=one,
            stage=stage,
            directory=folder / one,
            resources=resources,
            elements=max(1, count),
            array=None if count > 0 else "sweep",
        )
        for one in names
    ]
    place = SubmissionDir(folder / ".launch" / "001")
    record = describe("demo", folder, profile, jobs, ["hdtrain", "launch"])
    return SlurmQueue().script(place, record, jobs, after)


@pytest.mark.parametrize("name", CASES)
def test_the_text_for_sbatch_is_the_recorded_one(name, tmp_path):
    text = text_of(name, tmp_path).replace(str(tmp_path), "/runs").replace(sys.executable, "/env/bin/python")
    text = re.sub(r"HDTRAIN_COMMIT=\S+", "HDTRAIN_COMMIT=0123abc", text) + "\n"
    file = GOLDEN / f"{name}.sh"
    if os.environ.get("HDTRAIN_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_a_shell_script_without_mistakes(name, tmp_path):
    subprocess.run(["bash", "-n"], input=text_of(name, tmp_path), text=True, check=True)


def setup_of(text: str) -> str:
    return text.partition("# setup\n")[2].partition("# command\n")[0]


@pytest.fixture
def shell(tmp_path):
    """Run the part of the script before the command, with a `scontrol` that says `end`, and tell a variable."""

    def run(name: str, variable: str, end: str = "2026-01-02T03:04:05", **environment: str) -> str:
        (tmp_path / "bin").mkdir(exist_ok=True)
        scontrol = tmp_path / "bin" / "scontrol"
        scontrol.write_text(f"#!/bin/sh\necho 'JobId=7 EndTime={end} Deadline=N/A'\n" if end else "#!/bin/sh\nexit 1\n")
        scontrol.chmod(0o755)
        script = f'module() {{ :; }}\n{setup_of(text_of(name, tmp_path))}\nprintf %s "${variable}"'
        variables = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7", "TZ": "UTC", **environment}
        done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        return done.stdout

    return run


def test_the_job_knows_its_end_and_where_slurm_does_not_tell_it_knows_none(shell):
    assert shell("cpu-shard", "HDTRAIN_JOB_END_TIME") == "1767323045"
    assert shell("cpu-shard", "HDTRAIN_JOB_END_TIME", end="Unknown") == ""
    assert shell("cpu-shard", "HDTRAIN_JOB_END_TIME", end="") == ""


def test_values_of_variables_reach_the_job_as_written_and_its_code_goes_first(shell, tmp_path):
    assert shell("container", "WORDS") == "two words; $HOME"
    code = f"{tmp_path}/.launch/001/code"
    assert shell("cpu-shard", "PYTHONPATH") == code
    assert shell("cpu-shard", "PYTHONPATH", PYTHONPATH="/site") == f"{code}:/site"


def test_an_elastic_job_has_a_task_a_gpu_of_the_nodes_that_it_got(shell):
    assert shell("elastic", "SLURM_NTASKS", SLURM_NNODES="3") == "24"
    assert shell("elastic", "SRUN_CPUS_PER_TASK", SLURM_NNODES="3") == "12"
