"""The policy alone: admission, order, prefixes, rows, cancellation."""

import random

import pytest

from regpt.serve.scheduler import READING, READING_ALONE, Plan, Scheduler, Text, chunk


def run(scheduler: Scheduler, *, steps: int = 1, draw: bool = True) -> list[Plan]:
    """Do steps; every text that was read gets token 7."""
    plans = []
    for _ in range(steps):
        plan = scheduler.plan()
        scheduler.done(plan)
        for part in plan.parts:
            if draw and part.start + len(part.tokens) == len(part.text.tokens):
                part.text.tokens.append(7)
        plans.append(plan)
    return plans


def text(*tokens: int, scores: bool = False, request: object = None) -> Text:
    return Text(prompt=list(tokens), scores_prompt=scores, request=request)


def numbered(length: int, first: int = 100) -> Text:
    return text(*range(first, first + length))


def test_prompts_are_read_in_order_and_then_a_token_at_a_time() -> None:
    scheduler = Scheduler(2)
    one, other = text(1, 2, 3), text(4, 5)
    scheduler.add(one)
    scheduler.add(other)
    plan, after = run(scheduler, steps=2)
    assert [(part.row, part.start, part.tokens, part.wanted) for part in plan.parts] == [
        (0, 0, [1, 2, 3], "last"),
        (1, 0, [4, 5], "last"),
    ]
    assert [(part.row, part.start, part.tokens) for part in after.parts] == [
        (0, 3, [7]),
        (1, 2, [7]),
    ]


def test_a_long_prompt_is_read_beside_the_running() -> None:
    scheduler = Scheduler(3)
    scheduler.add(text(1))
    run(scheduler)
    scheduler.add(numbered(2 * READING + 3))
    late = text(9, 9)
    scheduler.add(late)
    plans = run(scheduler, steps=3)
    assert [[len(part.tokens) for part in plan.parts] for plan in plans] == [
        [1, READING],
        [1, READING],
        [1, 3, 2],
    ]
    assert [part.wanted for part in plans[0].parts] == ["last", "none"]
    assert plans[2].parts[2].text is late


def test_how_much_is_read_in_a_step() -> None:
    assert chunk(0) == READING_ALONE
    assert chunk(1) == READING
    assert chunk(16) == 32


def test_only_free_rows_are_given_and_first_come_is_first_served() -> None:
    scheduler = Scheduler(1)
    first, second, third = (text(number) for number in (1, 2, 3))
    for one in (first, second, third):
        scheduler.add(one)
    run(scheduler, steps=3)
    assert list(scheduler.waiting) == [second, third]
    scheduler.remove(first)
    (plan,) = run(scheduler)
    assert [part.text for part in plan.parts] == [second]


def test_a_finished_row_is_taken_up_again() -> None:
    scheduler = Scheduler(2)
    done = numbered(40)
    scheduler.add(done)
    run(scheduler)
    scheduler.remove(done)
    follow_up = text(*range(100, 140), 7, 8)
    scheduler.add(follow_up)
    (plan,) = run(scheduler)
    assert plan.copies == []
    assert [(part.row, part.start, part.tokens) for part in plan.parts] == [(0, 40, [7, 8])]
    assert follow_up.reused == 40


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    scheduler = Scheduler(1)
    first, again = numbered(5), numbered(5)
    scheduler.add(first)
    run(scheduler)
    scheduler.remove(first)
    scheduler.add(again)
    (plan,) = run(scheduler)
    assert [(part.start, part.tokens) for part in plan.parts] == [(4, [104])]


def test_a_busy_row_is_copied() -> None:
    scheduler = Scheduler(2)
    scheduler.add(numbered(30))
    run(scheduler)
    scheduler.add(text(*range(100, 120), 1))
    (plan,) = run(scheduler)
    assert plan.copies == [(0, 1, 20)]
    assert plan.parts[1].tokens == [1]


def test_a_long_row_is_not_given_up_for_a_short_prefix() -> None:
    scheduler = Scheduler(2)
    long = numbered(100)
    scheduler.add(long)
    run(scheduler)
    scheduler.remove(long)
    scheduler.add(text(100, 101, 1))
    (plan,) = run(scheduler)
    assert plan.copies == [(0, 1, 2)]
    assert len(scheduler.rows[0].held) == 100


def test_choices_of_one_prompt_read_it_once() -> None:
    scheduler = Scheduler(4)
    for _ in range(4):
        scheduler.add(numbered(300))
    plans = run(scheduler, steps=8)
    read = sum(len(part.tokens) for plan in plans for part in plan.parts if part.start < 300)
    assert read == 300 + 3  # the last token once for each
    assert all(row.held[:300] == list(range(100, 400)) for row in scheduler.rows)


def test_scored_prompts_are_read_anew_and_together() -> None:
    scheduler = Scheduler(4)
    for _ in range(3):
        scheduler.add(text(1, 2, 3, scores=True))
    (plan,) = run(scheduler)
    assert [(part.start, part.tokens, part.wanted) for part in plan.parts] == [
        (0, [1, 2, 3], "all")
    ] * 3
    assert [part.wanted for part in run(scheduler)[0].parts] == ["last"] * 3


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_a_text_is_removed_wherever_it_is(steps: int) -> None:
    scheduler = Scheduler(1)
    scheduler.add(text(1))
    run(scheduler)
    long = numbered(40)
    scheduler.add(long)
    scheduler.remove(scheduler.rows[0].text or long)
    run(scheduler, steps=steps)
    scheduler.remove(long)
    assert scheduler.idle
    assert not scheduler.busy
    held = scheduler.rows[0].held
    assert held[:40] == list(range(100, 140))[: len(held)] or steps == 0


def test_pieces_have_fixed_places_where_shapes_decide_the_rounding() -> None:
    scheduler = Scheduler(2, granule=8)
    first = numbered(21)
    scheduler.add(first)
    plans = run(scheduler, steps=5)
    assert [(part.start, len(part.tokens)) for plan in plans for part in plan.parts] == [
        (0, 8), (8, 8), (16, 5), (21, 1), (22, 1)
    ]  # fmt: skip
    scheduler.add(text(*range(100, 121), 7, 7, 7, 7))
    (plan,) = run(scheduler)
    assert plan.copies == [(0, 1, 16)]  # not the tokens that were read in a shorter piece or drawn
    assert [(part.start, len(part.tokens)) for part in plan.parts] == [(23, 1), (16, 8)]


def test_a_change_of_model_waits_for_whole_requests() -> None:
    scheduler = Scheduler(1)
    request = object()
    choices = [text(1, request=request) for _ in range(3)]
    for choice in (*choices, text(2, request=object())):
        scheduler.add(choice)
    run(scheduler)
    scheduler.paused = True
    for choice in choices:
        assert not scheduler.idle
        assert [part.text for part in run(scheduler)[0].parts] == [choice]
        scheduler.remove(choice)
    assert scheduler.idle
    scheduler.clear()
    scheduler.paused = False
    assert not scheduler.idle


@pytest.mark.parametrize("granule", [1, 8])
def test_any_order_keeps_the_books(granule: int) -> None:
    chance = random.Random(granule)
    scheduler = Scheduler(3, granule=granule)
    alive: list[Text] = []
    for _ in range(600):
        if chance.random() < 0.3:
            alive.append(text(*(chance.randrange(2) for _ in range(chance.randrange(1, 60)))))
            scheduler.add(alive[-1])
        before = [list(row.held) for row in scheduler.rows]
        plan = scheduler.plan()
        for source, target, length in plan.copies:
            assert scheduler.rows[target].held[:length] == before[source][:length]
        for part in plan.parts:
            assert part.text.tokens[: part.start] == scheduler.rows[part.row].held
            assert part.tokens == part.text.tokens[part.start : part.start + len(part.tokens)]
        assert len({part.row for part in plan.parts}) == len(plan.parts)
        scheduler.done(plan)
        for part in plan.parts:
            whole = part.start + len(part.tokens) == len(part.text.tokens)
            assert whole == (part.wanted == "last")
            if whole:
                part.text.tokens.append(chance.randrange(2))
        for one in [one for one in alive if len(one.tokens) > 70 or chance.random() < 0.05]:
            alive.remove(one)
            scheduler.remove(one)
    for one in alive:
        scheduler.remove(one)
    assert scheduler.idle
