"""The learning-rate schedule: a pure function of the step, shared by both twins."""

import math

from lmcore.config import Config

__all__ = ["learning_rate"]


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate of update `step` (the first is 0).

    It rises linearly from lr / warmup_steps, then decays by the schedule towards lr · min_lr_ratio at step
    `train.steps`.
    """
    optim, steps = config.optim, config.train.steps
    warmup = optim.warmup_steps or 0
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup))
    match optim.schedule:
        case "constant":
            scale = 1.0
        case "linear":
            scale = 1.0 - progress
        case "cosine":
            scale = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":
            decay_steps = max(1.0, min(optim.decay_fraction * steps, steps - warmup))
            scale = min(1.0, max(0, steps - step) / decay_steps)
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * scale)
