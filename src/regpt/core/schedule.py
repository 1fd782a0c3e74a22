"""Learning-rate schedules: pure functions from a step to a factor in (0, 1].

Steps count from 0. Warmup is never zero on its first step, and decay reaches its floor on the last
step itself (build-nanogpt's never does, and divides by zero when all steps are warmup).
"""

import math
from dataclasses import dataclass
from typing import Literal

from regpt.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps, as a factor of `lr`."""

    name: Literal["constant", "cosine", "wsd"] = "constant"
    """constant; cosine decay; or warmup-stable-decay (a plateau, then linear)."""
    warmup_steps: int = 0
    """Linear warmup over the first steps."""
    floor: float = 0.0
    """The factor that decay ends at, on the last step."""
    decay_fraction: float = 0.3
    """wsd: the share of the steps, at the end, in which the rate falls."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.floor <= 1:
            raise UserError(f"schedule.floor must be in [0, 1], got {self.floor}")
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"schedule.decay_fraction must be in [0, 1], got {self.decay_fraction}")


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
