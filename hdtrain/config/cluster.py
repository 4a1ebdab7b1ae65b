"""A cluster profile: where `hdtrain launch` sends jobs, and what each kind of job asks for; see `configs/cluster/`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from hdtrain.config.base import Config

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
OWN_OPTIONS = frozenset(
    ("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "requeue", "signal")
)
"""Options of sbatch that the launcher sets itself."""
OWN_KEYS = {
    "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem_gb",
    **{name: name for name in ("time", "partition", "account", "qos", "constraint")},
}
"""Options of sbatch that are keys of their own, which the checks know."""


def parse_minutes(value: Any) -> Any:
    """`90`, `1:30:00`, `2-00:00:00` or `2-12` (days-hours) in whole minutes, rounded up; anything else as it is.

    Raises:
        ValueError: a text that is no time.
    """
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value.strip())
    if not found:
        raise ValueError(f"expected minutes, 'HH:MM:SS' or 'D-HH:MM:SS', got '{value}'")
    days, first, second, third = found.groups()
    if days is not None:  # D-HH[:MM[:SS]]
        seconds = int(days) * 86400 + int(first) * 3600 + int(second or 0) * 60 + int(third or 0)
    elif third is not None:
        seconds = int(first) * 3600 + int(second) * 60 + int(third)
    else:  # minutes, or minutes:seconds, as sbatch reads them
        seconds = int(first) * 60 + int(second or 0)
    return -(-seconds // 60)


Minutes = Annotated[int, BeforeValidator(parse_minutes), Field(ge=1)]


class Resources(Config):
    """What one job asks for. What is None comes from the profile."""

    nodes: int = Field(1, ge=1)
    max_nodes: int | None = None
    """Elastic: the job takes from `nodes` to this many, whatever is free; another number after a requeue."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Processes (ranks); None: one a GPU, one without GPUs."""
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int = Field(4, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    """Of a node; None: what the partition gives."""
    time: Minutes = 60
    """Minutes, `HH:MM:SS` or `D-HH:MM:SS`. A training that needs longer is requeued and goes on."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array: int = Field(1, ge=1)
    """Jobs side by side, for stages that several may share (`sample`)."""
    array_parallel: int | None = Field(None, ge=1)
    """Of these so many at once; None: all."""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch, without its dashes: `{reservation: night, exclusive: true}`."""

    @property
    def tasks(self) -> int:
        """Processes a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @model_validator(mode="after")
    def _consistent(self) -> "Resources":
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(f"tasks_per_node: expected one a GPU ({self.gpus_per_node}), got {self.tasks_per_node}")
        if self.max_nodes is not None and self.max_nodes < self.nodes:
            raise ValueError(f"max_nodes: expected at least nodes ({self.nodes}), got {self.max_nodes}")
        given = sorted(name.lstrip("-").replace("_", "-") for name in self.options)
        for name in given:
            if name in OWN_OPTIONS:
                raise ValueError(f"options: '{name}' is set by the launcher itself; leave it out")
            if name in OWN_KEYS:
                raise ValueError(f"options: '{name}' has a key of its own, {OWN_KEYS[name]}; set that")
        return self


class ContainerConfig(Config):
    """Run jobs in an Apptainer (Singularity) image that has Python and the libraries; the code comes from outside."""

    image: Path
    command: str = "apptainer"
    python: str = "python"
    """Inside the image."""
    options: list[str] = Field(default_factory=lambda: ["--nv"])
    """Of `exec`; the folders of code, data and runs must be bound, where the site doesn't do so itself."""


class ClusterConfig(Config):
    """How and where jobs run."""

    kind: Literal["slurm", "local"] = "slurm"
    """`local`: subprocesses of this machine, under the same rules of dependencies, requeueing and logs."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    resources: dict[str, Resources] = Field(min_length=1)
    """Kinds of jobs by a name of your own. Without an entry in `stages`, stages without torch take `cpu`, others `gpu`,
    where those names are there; else the first."""
    stages: dict[str, str] = Field(default_factory=dict)
    """Stage, or node of a recipe, to a name in `resources`. A node's name goes before its stage's."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell before the job's command: `module load cuda/12.8`."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the jobs: `{NCCL_SOCKET_IFNAME: ib0}`."""
    container: ContainerConfig | None = None
    scratch: str | None = None
    """Folder on a node's own disk, for temporary files (TMPDIR), made there; `$SLURM_JOB_ID` and the like are filled
    in on the node."""
    signal_sec: int = Field(120, ge=10)
    """So long before the time limit the job is told to save."""
    max_restarts: int = Field(100, ge=0)
    """A job that was requeued so often is failed: something is wrong with it or with the cluster."""
    retries: int = Field(2, ge=0)
    """So often a job of several ranks whose attempt died (a lost rank, a hang; not a mistake) begins again from its
    newest checkpoint, without having come to another one."""
    health_check: bool = True
    """Before a job of several ranks begins: device, disk and an all-reduce. A node that fails is left out, and the job
    requeued."""
    min_free_gb: float = Field(20.0, ge=0)
    """Less free space where the runs lie stops `launch`."""
    max_jobs: int = Field(1, ge=1)
    """`local`: at once."""

    @model_validator(mode="after")
    def _time_to_save(self) -> "ClusterConfig":
        for name, wanted in self.resources.items():
            if wanted.time * 60 <= self.signal_sec:
                raise ValueError(
                    f"resources.{name}.time: expected more than signal_sec ({self.signal_sec} s), got {wanted.time} "
                    "minutes: the job would be told to save before it begins"
                )
        return self

    @model_validator(mode="after")
    def _local_has_no_script(self) -> "ClusterConfig":
        unused = [name for name in ("setup", "container") if getattr(self, name)]
        if self.kind == "local" and unused:
            raise ValueError(f"{unused[0]}: kind local starts its jobs without a script; leave it out")
        return self

    @model_validator(mode="after")
    def _names_that_are_there(self) -> "ClusterConfig":
        for name, wanted in self.stages.items():
            if wanted not in self.resources:
                raise ValueError(f"stages.{name}: no '{wanted}' in resources; there are {', '.join(self.resources)}")
        return self

    def resources_of(self, node: str, stage: str, needs_torch: bool) -> Resources:
        """What the job of a node of a recipe asks for, the profile's own partition and the like filled in."""
        default = "gpu" if needs_torch else "cpu"
        name = self.stages.get(node) or self.stages.get(stage)
        chosen = self.resources[name or (default if default in self.resources else next(iter(self.resources)))]
        keys = ("partition", "account", "qos", "constraint")
        return chosen.model_copy(update={key: getattr(chosen, key) or getattr(self, key) for key in keys})
