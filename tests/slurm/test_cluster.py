"""The cluster that the other tests stand on is a real one of two nodes."""

import subprocess

import pytest


def srun(*arguments: str) -> list[str]:
    done = subprocess.run(["srun", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return sorted(done.stdout.split())


def test_two_nodes_have_names_of_their_own(slurm):
    assert srun("-N2", "hostname") == ["node1", "node2"]


@pytest.mark.slow
def test_a_killed_node_is_seen_down_takes_its_processes_along_and_comes_back(slurm):
    job = subprocess.run(
        ["sbatch", "--parsable", "-N2", "--no-requeue", "-o", "/dev/null", "--wrap", "srun sleep 1234"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    slurm.wait_until(lambda: sleepers() == 2, "the job sleeps on two nodes")
    slurm.kill_node("node2", notice=False)
    slurm.wait_until(lambda: sleepers() < 2, "the node's own process is gone", 2)
    slurm.wait_until(lambda: slurm.node_states()["node2"] == "down*", "the node is down")
    slurm.wait_until(lambda: slurm.job_state(job) == "NODE_FAIL", "the job failed with its node")
    assert srun("-N1", "hostname") == ["node1"]
    slurm.revive()
    assert srun("-N2", "hostname") == ["node1", "node2"]


def sleepers() -> int:
    done = subprocess.run(["pgrep", "-c", "-x", "sleep"], capture_output=True, text=True, check=False)
    return int(done.stdout)
