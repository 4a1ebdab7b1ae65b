"""Learning-rate schedules as functions of images seen, so that they survive a change of batch size."""

import math

from hdtrain.config.engine import OptimConfig


def lr_factor(config: OptimConfig, global_batch_size: int) -> float:
    """What `lr` is multiplied with at a batch other than its reference batch."""
    if config.reference_batch_size is None:
        return 1.0
    ratio = global_batch_size / config.reference_batch_size
    return ratio if config.scaling == "linear" else math.sqrt(ratio)


def lr_at(images_seen: int, config: OptimConfig, total_images: int, global_batch_size: int) -> float:
    """Linear warm-up from `warmup_from` to `lr`, then constant, cosine or linear decay to zero at `total_images`."""
    return lr_factor(config, global_batch_size) * _unscaled(images_seen, config, total_images)


def _unscaled(images_seen: int, config: OptimConfig, total_images: int) -> float:
    if images_seen < config.warmup_images:
        progress = (images_seen + 1) / (config.warmup_images + 1)
        return config.warmup_from + (config.lr - config.warmup_from) * progress
    if config.schedule == "constant":
        return config.lr
    rest = max(1, total_images - config.warmup_images)
    progress = min(1.0, (images_seen - config.warmup_images) / rest)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
