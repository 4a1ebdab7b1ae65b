"""Numbers derived from a config and a world size, never written into a config."""

import math
from dataclasses import dataclass

from hdtrain.config.engine import BatchConfig, DurationConfig
from hdtrain.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `world_size` ranks × `accumulation_steps` passes × `micro_batch_size` images."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int

    @classmethod
    def from_config(cls, config: BatchConfig, world_size: int) -> "BatchPlan":
        """Derive the plan.

        Raises:
            ConfigError: the global batch does not divide evenly.
        """
        total = config.global_batch_size
        micro = config.micro_batch_size or max(1, total // world_size)
        accumulation, rest = divmod(total, micro * world_size)
        if rest or not accumulation:
            fitting = [m for m in range(1, total + 1) if total % (m * world_size) == 0]
            near = sorted({max(1, total // world_size) * world_size, -(-total // world_size) * world_size})
            problem = (
                f"batch: {total} images are not a multiple of {micro} (micro) × {world_size} (ranks); micro batch "
                f"sizes that fit: {', '.join(map(str, fitting))}"
                if fitting
                else f"batch: {total} images cannot be split over {world_size} ranks; global batch sizes that can: "
                f"{', '.join(map(str, near))}, and any other multiple of {world_size}"
            )
            raise ConfigError("batch plan", [problem])
        return cls(total, micro, accumulation, world_size)

    def positions(self, step: int, accumulation_step: int, rank: int) -> range:
        """Global positions (images since the start) that `rank` reads in one pass of one step."""
        per_pass = self.micro_batch_size * self.world_size
        start = step * self.global_batch_size + accumulation_step * per_pass + rank * self.micro_batch_size
        return range(start, start + self.micro_batch_size)

    def num_steps(self, images: int) -> int:
        """Optimizer steps that see at least `images` images."""
        return math.ceil(images / self.global_batch_size)


def every_steps(every_images: int | None, duration: DurationConfig, times: int, global_batch_size: int) -> int:
    """An interval in steps; None means `times` over the whole run."""
    images = every_images or math.ceil(duration.images / times)
    return max(1, round(images / global_batch_size))
