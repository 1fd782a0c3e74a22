"""Learning-rate schedules: pure functions from a step to a factor in (0, 1].

Steps count from 0. Warmup is never zero on its first step, and decay reaches its floor on the last
step itself (build-nanogpt's never does, and divides by zero when all steps are warmup).
"""

import math

from regpt.training.config import ScheduleConfig


def factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """What to multiply the peak learning rate with at `step` of `steps`."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    last = steps - 1
    if schedule.name == "cosine":
        start = schedule.warmup_steps
        progress = (step - start) / max(last - start, 1)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (
            1 + math.cos(math.pi * min(progress, 1.0))
        )
    start = max(schedule.warmup_steps, round(steps * (1 - schedule.decay_fraction)) - 1)
    progress = max(step - start, 0) / max(last - start, 1)
    return 1.0 - (1.0 - schedule.floor) * min(progress, 1.0)
