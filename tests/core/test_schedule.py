"""Schedules: pure functions, checked at their corners."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.core.schedule import ScheduleConfig, factor


def test_constant_is_one() -> None:
    assert {factor(step, 50, ScheduleConfig()) for step in range(50)} == {1.0}


def test_the_lectures_cosine() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=715, floor=0.1)
    assert factor(0, 19_073, schedule) == 1 / 715
    assert factor(714, 19_073, schedule) == 1.0
    assert factor(19_072, 19_073, schedule) == pytest.approx(0.1)
    middle = (715 + 19_072) // 2
    progress = (middle - 715) / (19_072 - 715)
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    assert factor(middle, 19_073, schedule) == pytest.approx(expected)


def test_wsd_is_flat_then_linear_to_the_floor() -> None:
    schedule = ScheduleConfig(name="wsd", warmup_steps=10, decay_fraction=0.4, floor=0.0)
    values = [factor(step, 100, schedule) for step in range(100)]
    assert values[9:60] == [1.0] * 51
    steps = [round(before - after, 9) for before, after in pairwise(values[60:])]
    assert len(set(steps)) == 1
    assert values[99] == 0.0


@given(
    name=st.sampled_from(["constant", "cosine", "wsd"]),
    warmup=st.integers(0, 60),
    steps=st.integers(1, 50),
    floor=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_always_between_zero_and_one(
    name: str, warmup: int, steps: int, floor: float, decay: float
) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, floor=floor, decay_fraction=decay)
    assert all(0 <= factor(step, steps, schedule) <= 1 for step in range(steps))
