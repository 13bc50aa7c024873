"""The learning rate as a pure function of the number of updates, so that a resume has nothing to restore."""

import math

from minirl.config.stages import OptimizerStageConfig


def learning_rate(config: OptimizerStageConfig, update: int, total_updates: int) -> float:
    """Of update 0, 1, ...: linear warm-up over `warmup_updates`, then constant, or a cosine down to `min_learning_rate` at the last."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    progress = (update - config.warmup_updates) / max(1, total_updates - config.warmup_updates)
    low = config.min_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
