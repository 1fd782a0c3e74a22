"""Schedules in steps and in tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt import UserError
from regpt.training.interval import Interval


@pytest.mark.parametrize(
    ("written", "count", "in_tokens"),
    [
        (250, 250, False), ("250", 250, False), ("10M", 10_000_000, True), ("500k", 500_000, True),
        ("1.5B", 1_500_000_000, True), ("4096tokens", 4096, True), ("2 m tokens", 2_000_000, True),
        ("16384 tokens", 16384, True),
    ],
)  # fmt: skip
def test_what_people_write(written: int | str, count: int, in_tokens: bool) -> None:
    assert Interval.parse(written, "eval_every") == Interval(count=count, in_tokens=in_tokens)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (0, "eval_every must be at least 1, got 0"),
        ("0M", "eval_every must be at least 1, got 0M"),
        (-3, "eval_every -3 is no interval"),
        ("ten", r"eval_every 'ten' is no interval: give steps \(250\), or tokens"),
        ("10G", "is no interval"),
        ("2.5", "eval_every 2.5: steps are whole"),
    ],
)
def test_what_is_refused(written: int | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Interval.parse(written, "eval_every")


@given(count=st.integers(1, 50), sizes=st.lists(st.integers(1, 120), max_size=40))
def test_every_multiple_is_passed_once_however_the_steps_are_cut(
    count: int, sizes: list[int]
) -> None:
    interval = Interval(count=count, in_tokens=True)
    tokens, passed = 0, 0
    for step, size in enumerate(sizes, start=1):
        due = interval.passed(step=step, tokens=tokens + size, tokens_before=tokens)
        assert due == any((tokens + i) % count == 0 for i in range(1, size + 1))
        tokens += size
        passed += due
    assert passed <= tokens // count
    if all(size <= count for size in sizes):
        assert passed == tokens // count
