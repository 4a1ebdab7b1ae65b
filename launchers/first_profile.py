"""`hdtrain launch --init`: a first cluster profile from what `sinfo` says of the partitions."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from hdtrain.config.cluster import ClusterConfig, parse_minutes
from hdtrain.config.load import validate
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_bytes

DEFAULT_PATH = Path("configs/cluster/mine.yaml")
FORMAT = "%P|%a|%l|%D|%c|%m|%G|%f"
"""Partition (`*`: the default), whether it is up, longest time, nodes, CPUs and MiB of a node, gres, features."""
DAY = 24 * 60
MAX_CPUS_OF_A_TASK = 32
PATIENCE_SEC = 60


@dataclass(frozen=True)
class NodeGroup:
    """The nodes of one kind in one partition."""

    partition: str
    default: bool
    max_minutes: int | None
    """None: no limit."""
    nodes: int
    cpus: int
    mem_gb: int
    gpus: int
    gpu_name: str
    features: str

    @property
    def minutes(self) -> int:
        """A day, or as long as the partition allows."""
        return min(self.max_minutes or DAY, DAY)

    @property
    def gpu_cpus(self) -> int:
        """CPUs for each of the node's GPUs."""
        return max(1, min(self.cpus // max(1, self.gpus), MAX_CPUS_OF_A_TASK))

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPUs {self.gpu_name}".rstrip() if self.gpus else ""
        limit = f"at most {_clock(self.max_minutes)}" if self.max_minutes else "no time limit"
        features = f", features {self.features}" if self.features else ""
        default = " (default)" if self.default else ""
        return f"{self.partition}{default}: {self.nodes} × {self.cpus} CPUs, {self.mem_gb} GB{gpus}, {limit}{features}"


def write_first_profile(path: str | None) -> str:
    """Ask `sinfo`, write a profile with comments, say what to do with it.

    Args:
        path: of the new file; None: `configs/cluster/mine.yaml`.

    Raises:
        HdtrainError: there is no SLURM here, nothing in it is up, or the file is there already.
    """
    target = Path(path) if path else DEFAULT_PATH
    if target.exists():
        raise HdtrainError(f"{target} is there already and stays as it is; name another: hdtrain launch --init FILE")
    groups = read_sinfo(_sinfo())
    if not groups:
        raise HdtrainError("sinfo lists no partition that is up; ask the cluster's administrators")
    text = profile_text(groups)
    validate(ClusterConfig, yaml.safe_load(text), str(target))
    write_bytes(target, text.encode())
    default = target.parent == DEFAULT_PATH.parent and target.suffix == ".yaml"
    return (
        f"{target}: a first profile from {len(groups)} kinds of nodes. Look through it, then:\n"
        f"  hdtrain launch RECIPE.yaml --cluster {target.stem if default else target} --dry-run"
    )


def _sinfo() -> str:
    if not shutil.which("sinfo"):
        raise HdtrainError(
            "no SLURM here: sinfo not found; run this on a login node of the cluster, or begin with "
            "configs/cluster/template.yaml, or take --cluster local"
        )
    try:
        done = subprocess.run(
            ["sinfo", "-h", "-e", "-o", FORMAT], capture_output=True, text=True, check=False, timeout=PATIENCE_SEC
        )
    except subprocess.TimeoutExpired:
        raise HdtrainError(f"sinfo does not answer for {PATIENCE_SEC} s; try again later") from None
    if done.returncode:
        raise HdtrainError(f"sinfo: {done.stderr.strip()}")
    return done.stdout


def read_sinfo(text: str) -> list[NodeGroup]:
    """The groups of nodes in partitions that are up, from lines of `FORMAT`."""
    groups = []
    for line in text.splitlines():
        partition, up, limit, nodes, cpus, memory, gres, features = (line.split("|", 7) + [""] * 8)[:8]
        if up != "up" or not nodes.isdecimal():
            continue
        gpus, name = _gpus(gres)
        groups.append(
            NodeGroup(
                partition.rstrip("*"),
                partition.endswith("*"),
                None if limit in ("infinite", "n/a", "") else _minutes(limit),
                int(nodes),
                _number(cpus),
                _number(memory) * 2**20 // 10**9,
                gpus,
                name,
                "" if features in ("(null)", "N/A") else features,
            )
        )
    return groups


def _minutes(limit: str) -> int:
    """sinfo writes `30:00` for half an hour."""
    return int(parse_minutes(f"0:{limit}" if re.fullmatch(r"\d+:\d+", limit) else limit))


def _number(text: str) -> int:
    found = re.match(r"\d+", text)  # `128+`: at least
    return int(found[0]) if found else 0


def _gpus(gres: str) -> tuple[int, str]:
    """`gpu:h200:8(S:0-1),shard:…` to 8 and `h200`."""
    found = re.findall(r"(?:^|,)gpu(?::([^:,(]+))??(?::(\d+))(?=[(,]|$)", gres)
    return sum(int(count) for _, count in found), ", ".join(name for name, _ in found if name)


def profile_text(groups: list[NodeGroup]) -> str:
    """The profile: `gpu` for the best GPU nodes, `cpu` for nodes without, the others as comments."""
    with_gpus = sorted(
        (group for group in groups if group.gpus),
        key=lambda group: (group.minutes == DAY, group.nodes * group.gpus, -(group.max_minutes or 10**9)),
        reverse=True,
    )
    without = sorted(
        (group for group in groups if not group.gpus),
        key=lambda group: (group.minutes == DAY, group.default, group.nodes),
        reverse=True,
    )
    lines = [
        "# Written by `hdtrain launch --init` from what sinfo said:",
        *(f"#   {group}" for group in groups),
        "# Every other key: configs/cluster/template.yaml and docs/launching.md.",
        "",
        "# account: my-project      # where the site asks for one: sacctmgr show assoc user=$USER",
        "# qos: normal",
        "",
        "resources:",
    ]
    if with_gpus:
        lines += ["  # stages with torch: one process a GPU, on one node", *_gpu_lines(with_gpus[0])]
        lines += [f"  # gpu: {_gpu_values(group)}  # {_shown_gpus(group)}" for group in with_gpus[1:]]
    chosen = without[0] if without else with_gpus[0]
    lines += ["  # stages without torch", f"  cpu: {_cpu_values(chosen)}"]
    lines += [f"  # cpu: {_cpu_values(group)}" for group in without[1:]]
    if with_gpus:
        best = with_gpus[0]
        one = f"partition: {best.partition}, gpus_per_node: 1, cpus_per_task: {best.gpu_cpus}"
        clock = f'time: "{_clock(best.minutes)}"'
        lines += [
            "  # one GPU, and the jobs that make images side by side",
            f"  one-gpu: {{{one}, {clock}}}",
            f"  generate: {{{one}, {clock}, array: {min(16, best.nodes * best.gpus)}}}",
            "stages:",
            *(f"  {stage}: one-gpu" for stage in ("train-classifier", "sweep-guidance", "sweep-solvers")),
            "  sample: generate",
        ]
        if best.nodes > 1:
            lines += ["# environment:", "#   NCCL_SOCKET_IFNAME: ib0  # for jobs of several nodes: `ip -br link` there"]
    return "\n".join([*lines, "# scratch: /tmp/hdtrain-$SLURM_JOB_ID", ""])


def _gpu_lines(best: NodeGroup) -> list[str]:
    several = f"  # nodes: {best.nodes} are there; several make one training" if best.nodes > 1 else ""
    return [f"  gpu: {_gpu_values(best)}{several}"]


def _gpu_values(group: NodeGroup) -> str:
    return (
        f"{{partition: {group.partition}, gpus_per_node: {group.gpus}, cpus_per_task: {group.gpu_cpus}, "
        f'time: "{_clock(group.minutes)}"}}'
    )


def _cpu_values(group: NodeGroup) -> str:
    cpus = max(1, min(group.cpus, MAX_CPUS_OF_A_TASK))
    return f'{{partition: {group.partition}, cpus_per_task: {cpus}, time: "{_clock(group.minutes)}"}}'


def _shown_gpus(group: NodeGroup) -> str:
    return f"{group.nodes} nodes{f', {group.gpu_name}' if group.gpu_name else ''}"


def _clock(minutes: int | None) -> str:
    days, rest = divmod(minutes or 0, DAY)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock
