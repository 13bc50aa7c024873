"""The learning rate as a pure function of the update's number, so that a resume has no scheduler state to restore."""

import math

from minirl.config.stages import OptimizerStageConfig


def learning_rate(config: OptimizerStageConfig, update: int, total_updates: int) -> float:
    """The rate of update 0, 1, ...: linear warm-up over `warmup_updates`, then constant or a cosine.

    The cosine reaches `min_learning_rate` at `total_updates`.
    """
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    progress = (update - config.warmup_updates) / max(1, total_updates - config.warmup_updates)
    lowest = config.min_learning_rate
    return lowest + (config.learning_rate - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
