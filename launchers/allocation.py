"""Where a task of a job stands: its rank, the first rank's host and a port, which attempt this is. From SLURM or us."""

import os
import socket
from dataclasses import dataclass

from hdtrain.distributed.world import World

QUEUE_VARIABLE = "HDTRAIN_QUEUE"
"""`local` in jobs of the local queue; otherwise SLURM's own variables count."""
FIRST_PORT, NUM_PORTS = 12_000, 20_000
"""Below the ports that Linux gives out itself, which begin at 32,768."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Allocation:
    """This task's place."""

    world: World
    nodes: tuple[str, ...]
    """Host names, the first rank's first."""
    tasks_per_node: int
    job_id: str
    """Of this element of an array."""
    restarts: int
    """How often the job was requeued before."""
    cpus_per_task: int | None = None

    @classmethod
    def from_environment(cls) -> "Allocation":
        """Of this process, which SLURM's `srun` or the local queue has started."""
        if os.environ.get(QUEUE_VARIABLE) == "local":
            return cls(
                World.from_environment(),
                (socket.gethostname(),),
                int(os.environ["WORLD_SIZE"]),
                os.environ["HDTRAIN_JOB_ID"],
                int(os.environ["HDTRAIN_RESTARTS"]),
            )
        import submitit

        job = submitit.JobEnvironment()
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        return cls(
            World(job.global_rank, job.num_tasks, job.local_rank),
            tuple(job.hostnames),
            max(1, job.num_tasks // job.num_nodes),
            job.raw_job_id,
            int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            int(cpus) if cpus else None,
        )

    @property
    def port(self) -> int:
        """For the ranks to meet; of two jobs on one node each has its own, and of two attempts too."""
        digits = "".join(filter(str.isdecimal, self.job_id)) or "0"
        return FIRST_PORT + (int(digits) + 7919 * self.restarts) % NUM_PORTS

    def variables(self, *, torch: bool) -> dict[str, str]:
        """What the ranks of a stage are told; those without torch meet in their run directory instead.

        CUDA_VISIBLE_DEVICES stays as the queue set it: every rank sees all GPUs of its node and takes that of its local
        rank, as DeepSpeed does.
        """
        told = {"RANK": self.world.rank, "WORLD_SIZE": self.world.size, "LOCAL_RANK": self.world.local_rank}
        told["LOCAL_WORLD_SIZE"] = self.tasks_per_node
        meeting = {"MASTER_ADDR": self.nodes[0], "MASTER_PORT": str(self.port)} if torch else {}
        return {**{name: str(value) for name, value in told.items()}, **meeting}
