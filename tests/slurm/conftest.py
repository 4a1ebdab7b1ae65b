"""The SLURM that `tests/slurm/cluster` has started, and the command line in it. Without it these tests are skipped."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_chain import prepare

HERE = Path(__file__).parent
HOME = os.environ.get("HDTRAIN_SLURM")
"""The cluster's own folder; not set outside it."""
PATIENCE_SEC = 240
POLL_SEC, POLL_SLURM_SEC = 0.05, 0.5
"""To look at files, and to ask SLURM, which costs a process or two."""
LOG_LINES = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where there is no cluster."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)
            if not HOME:
                item.add_marker(pytest.mark.skip(reason="not inside a SLURM: run `make test-slurm`"))


class Cluster:
    """What a test does to the cluster and asks of it."""

    nodes = ("node1", "node2")

    def __init__(self, home: Path):
        self.home = home
        self._spoilt: list[str] = []

    def kill_node(self, name: str, *, notice: bool = True) -> None:
        """Cut the power of a node. SLURM notices it after 10 to 30 s, or, with `notice`, is told so now."""
        pid = int((self.home / f"{name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"{name} is off", poll_sec=POLL_SEC)
        if notice:
            command("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed by a test")

    def revive(self) -> None:
        """Power all nodes on and wait until SLURM would use them."""
        for name in self.nodes:
            command(str(HERE / "cluster"), "boot", name)
        self.wait_until(lambda: set(self.node_states().values()) <= {"idle", "mixed", "allocated"}, "every node is up")

    def fill_disk(self, node: str, folder: Path) -> None:
        """Until the end of the test this folder lies, on this node alone, on a disk without room."""
        folder.mkdir(parents=True, exist_ok=True)
        on_node = ("nsenter", "--mount", "--target", (self.home / f"{node}.pid").read_text().strip())
        command(*on_node, "mount", "-t", "tmpfs", "-o", "size=16k", "full", str(folder))
        self._spoilt.append(node)

    def node_states(self) -> dict[str, str]:
        """Node to `idle`, `allocated`, `down`, …; `*` behind it: does not answer."""
        lines = command("sinfo", "-h", "-N", "-p", "ci", "-o", "%n %T").splitlines()
        return dict(line.split() for line in lines)

    def squeue(self) -> dict[str, str]:
        """Job to its state, of all that wait or run."""
        lines = command("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, by SLURM's own names; empty: nothing any more."""
        done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    def job_state(self, job: str) -> str:
        """`PENDING`, `RUNNING`, `COMPLETED`, …"""
        return self.job(job).get("JobState", "")

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        return int(self.job(job).get("Restarts", 0))

    def wait_until(
        self,
        condition: Callable[[], Any],
        what: str,
        timeout_sec: float = PATIENCE_SEC,
        poll_sec: float = POLL_SLURM_SEC,
    ) -> Any:
        """Wait for a condition to become true; gives what it gave.

        `what` names it in the failure, which also shows the queue.
        """
        end = time.monotonic() + timeout_sec
        while not (met := condition()):
            if time.monotonic() > end:
                shown = command("squeue", "-a"), command("scontrol", "show", "jobs", "-o")
                pytest.fail(f"not after {timeout_sec:g} s: {what}\n{shown[0]}\n{shown[1]}")
            time.sleep(poll_sec)
        return met

    def clear(self) -> None:
        """Cancel all jobs, and bring back what was killed."""
        while self._spoilt:
            self.kill_node(self._spoilt.pop())
        for name in self.nodes:
            command(str(HERE / "cluster"), "boot", name)
        for job in {name.partition("_")[0] for name in self.squeue()}:
            subprocess.run(["scancel", job], check=False)
            subprocess.run(["scancel", "--signal=KILL", "--full", job], capture_output=True, check=False)
        self.wait_until(lambda: not self.squeue(), "the queue is empty")
        self.revive()


def command(*arguments: str) -> str:
    """Stdout of a command that must succeed."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)} left with {done.returncode}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def _cluster() -> Cluster:
    assert HOME
    return Cluster(Path(HOME))


@pytest.fixture
def slurm(_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with all nodes up and an empty queue, before and after."""
    yield _cluster
    _cluster.clear()


class Runs:
    """Submissions of one test, in its own folder; in the name of another user, if one is given."""

    def __init__(self, folder: Path, slurm: Cluster, user: pwd.struct_passwd | None = None):
        self.folder, self.slurm, self.user = folder, slurm, user
        self.profile()

    def profile(self, name: str = "cluster", **changes: Any) -> Path:
        """Write a profile of the test cluster, with top-level keys replaced: two nodes, a task each, no GPUs."""
        content: dict[str, Any] = {
            "partition": "ci",
            "resources": {
                "cpu": {"cpus_per_task": 1, "time": 10},
                "gpu": {"cpus_per_task": 1, "time": 10},
                "two": {"nodes": 2, "cpus_per_task": 1, "time": 10},
            },
            "environment": {"OMP_NUM_THREADS": "1"},
            "health_check": False,
            "min_free_gb": 0.1,
            **changes,
        }
        return self.write(f"{name}.yaml", content)

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """A YAML file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def cli(self, *arguments: object, code: int = 0) -> str:
        """The real command line in the folder; its stdout and stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "hdtrain", *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self._in_whose_name(),
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"hdtrain {' '.join(map(str, arguments))} left with {done.returncode}\n{said}"
        return said

    def _in_whose_name(self) -> dict[str, Any]:
        if not self.user:
            return {}
        name, home = self.user.pw_name, self.user.pw_dir
        environment = {**os.environ, "HOME": home, "USER": name, "LOGNAME": name}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": [], "env": environment}

    def launch(self, *arguments: object, cluster: str = "cluster") -> dict[str, list[str]]:
        """`hdtrain launch`; the ids in the queue of every job that it submitted."""
        return self.submitted(self.cli("launch", *arguments, "--cluster", f"{cluster}.yaml"))

    def submitted(self, said: str) -> dict[str, list[str]]:
        """The same of a command that has told where its submission lies."""
        place = Path(said.partition("submission:")[2].split()[0])
        record = json.loads((place / "submission.json").read_text())
        return {job["name"]: job["ids"] for job in record["jobs"]}

    def stage(self, name: str, stage: str, config: dict[str, Any], *more: object, cluster: str = "cluster") -> str:
        """Launch one stage into the run directory `name`; its job's id."""
        self.write(f"{name}-config.yaml", config)
        (ids,) = self.launch(stage, f"{name}-config.yaml", "--out", name, *more, cluster=cluster).values()
        return ids[0]

    def ended(self, job: str, state: str = "COMPLETED", timeout_sec: float = PATIENCE_SEC) -> None:
        """Wait for the end of a job, which must be in this state; else its logs are shown."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.slurm.wait_until(
            lambda: self.slurm.job_state(job) in final and job not in self.slurm.squeue(),
            f"job {job} ends",
            timeout_sec,
        )
        got = self.slurm.job_state(job)
        assert got == state, f"job {job}: {got}, expected {state}\n{self.logs()}"

    def attempts(self, name: str, event: str = "end") -> list[dict[str, Any]]:
        """How the attempts of the newest job that fills the run directory `name` ended, or how they began."""
        run = self.folder / name
        files = sorted(run.parent.glob(f".launch/*/jobs/{run.name}/attempts.jsonl"))
        lines = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
        return [line for line in lines if line["event"] == event]

    def steps(self, name: str) -> int:
        """How many steps a training has written down."""
        path = self.folder / name / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def begun(self, name: str, steps: int) -> None:
        """Wait until a training has made so many steps."""
        self.slurm.wait_until(lambda: self.steps(name) >= steps, f"{name} has made {steps} steps", poll_sec=POLL_SEC)

    def logs(self) -> str:
        """The ends of all logs of the folder."""
        paths = sorted({*self.folder.glob("**/.launch/**/*.err"), *self.folder.glob("**/.launch/**/*.out")})
        paths += sorted(self.folder.glob("**/logs/*.log"))
        texts = [(path, path.read_text(errors="replace").splitlines()[-LOG_LINES:]) for path in paths]
        return "\n".join("\n".join([f"--- {path.relative_to(self.folder)}", *lines]) for path, lines in texts if lines)


@pytest.fixture
def runs(tmp_path: Path, slurm: Cluster) -> Runs:
    """A folder to submit from, with `cluster.yaml`, a profile."""
    return Runs(tmp_path, slurm)


@pytest.fixture
def users(slurm: Cluster) -> Iterator[list[Runs]]:
    """The cluster's two users, each with a profile in a home that is closed to all others."""
    assert HOME
    users = [pwd.getpwnam(name) for name in ("ada", "emmy")]
    for user in users:
        seen = [
            "setpriv",
            f"--reuid={user.pw_uid}",
            f"--regid={user.pw_gid}",
            "--clear-groups",
            sys.executable,
            "-c",
            "",
        ]
        if subprocess.run(seen, capture_output=True, check=False).returncode:
            pytest.skip(f"{sys.executable} cannot be run by other users: a folder above it is closed to them")
    yield [Runs(Path(user.pw_dir), slurm, user) for user in users]
    for user in users:
        shutil.rmtree(user.pw_dir)
        Path(user.pw_dir).mkdir(mode=0o700)
        os.chown(user.pw_dir, user.pw_uid, user.pw_gid)


@pytest.fixture
def shared(slurm: Cluster) -> Iterator[Callable[[Path], Path]]:
    """Copies of runs in a folder that everybody may read and nobody but root may write to."""
    folder = slurm.home / "shared"

    def share(run: Path) -> Path:
        shutil.copytree(run, folder / run.name)
        command("chmod", "-R", "a+rX,go-w", str(folder))
        return folder / run.name

    yield share
    shutil.rmtree(folder)


class LocalRanks:
    """The same stage on this machine, without a queue, for comparison."""

    def run(self, stage: str, directory: Path, config: dict[str, Any], ranks: int = 1) -> Path:
        """Run it to its end; through torchrun if on several ranks."""
        prepare(stage, directory, config)
        start = [sys.executable, "-m"]
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
        arguments = [*start, "hdtrain.stages", stage, str(directory)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{stage} left with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return directory


@pytest.fixture(scope="session")
def locally() -> LocalRanks:
    """Runs a stage without a queue."""
    return LocalRanks()
