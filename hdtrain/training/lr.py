"""Learning-rate schedules as functions of images seen, so that they survive a change of batch size."""

import math

from hdtrain.config.training import OptimConfig


def lr_at(images_seen: int, config: OptimConfig, total_images: int) -> float:
    """Linear warm-up to `lr`, then constant, cosine or linear decay to zero at `total_images`."""
    if images_seen < config.warmup_images:
        return config.lr * (images_seen + 1) / (config.warmup_images + 1)
    if config.schedule == "constant":
        return config.lr
    rest = max(1, total_images - config.warmup_images)
    progress = min(1.0, (images_seen - config.warmup_images) / rest)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
