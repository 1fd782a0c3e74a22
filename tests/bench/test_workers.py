"""Workers: one system per process, its faults in one line, at rest while it waits."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.bench import interleaved as rounds
from regpt.bench.interleaved import Budget, Job, Measured, alternate, loaded, measure
from regpt.bench.session import Session
from regpt.bench.workers import Answer, System, Worker, WorkerFault, machine_seconds, started

Patch = pytest.MonkeyPatch
JOB = Job(name="job", tokens=10, arguments={"job": "job"})


@pytest.fixture(autouse=True)
def fixed(monkeypatch: Patch) -> None:
    """The workers import `bench_systems` from here; a call is one JOB, however short."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(source), str(Path(__file__).parent))))
    monkeypatch.setattr(rounds, "MOST_REPEATS", 1)
    monkeypatch.setattr(rounds, "machine_seconds", lambda: None)  # others may be busy here


def system(name: str, load: str, *, ours: bool = False, **settings: object) -> System:
    return System(
        name=name, dtype="fp32", load=f"bench_systems:{load}", settings=settings, ours=ours
    )


def writers(names: str, log: Path, *, ours: bool = False) -> list[System]:
    return [system(name, "load", ours=ours, log=str(log), sign=name) for name in names]


@contextlib.contextmanager
def one(only: System) -> Iterator[Worker]:
    with started(only) as worker:
        worker.load()
        yield worker


def names(session: Session) -> list[str]:
    return [row.system for row in session.rows]


def fault_of(broken: System, *, sound_calls: int) -> str:
    with one(broken) as worker:
        for _ in range(sound_calls):
            worker.call({})
        with pytest.raises(WorkerFault) as caught:
            worker.call({})
        return str(caught.value)


def test_systems_take_turns(tmp_path: Path) -> None:
    log, session = tmp_path / "log", Session("test")
    measure(session, writers("abc", log), JOB, Budget(seconds=1e9, rounds=3))
    assert log.read_text() == "aabbcc" + "abc" * 3  # the first round warms up
    assert session.notes == []
    assert names(session) == ["a", "b", "c"]
    row = session.rows[0]
    assert row.facts == {"job": "job", "sign": "a"}
    assert row.timed == 3
    assert not row.first_call
    assert 0 < row.fastest_seconds <= row.seconds <= row.slowest_seconds
    assert row.tokens_per_second == 10 / row.seconds


def test_a_call_of_a_script_has_parts(tmp_path: Path) -> None:
    script, session = tmp_path / "script.py", Session("test")
    script.write_text(
        "def load(share):\n"
        "    return lambda: {'parts': {'first': share, 'second': 1 - share}, 'loss': 2.0}\n"
    )
    scripted = System(name="s", load=f"{script}:load", settings={"share": 0.25})
    measure(session, [scripted], Job(name="job"), Budget(seconds=60, rounds=2))
    whole, first, second = session.rows
    assert [whole.job, first.job, second.job] == ["job", "job: first", "job: second"]
    assert (first.seconds, second.seconds) == (0.25, 0.75)
    assert whole.timed == first.timed == 2
    assert whole.tokens_per_second is None
    assert whole.facts == {"loss": 2.0}


LONG = Budget(seconds=1e9, rounds=2)
NO_TIME = Budget(seconds=0, rounds=5)


@pytest.mark.parametrize(
    ("setting", "budget", "calls", "timed"),
    [
        ({"MOST_REPEATS": 4, "CALL_SECONDS": 1e9}, LONG, "aabb" + "aaaabbbb" * 2, 8),
        ({}, NO_TIME, "aabbab", 1),
        ({"SLOW_SECONDS": 0.0}, NO_TIME, "ab", 1),
        ({"SLOW_SECONDS": 0.0}, LONG, "ababab", 2),
    ],
    ids=[
        "a short job is repeated",
        "everyone is timed once even without time",
        "a slow first call stands in for want of time",
        "a slow first call is replaced by a better one",
    ],
)
def test_who_is_called_how_often(
    setting: dict, budget: Budget, calls: str, timed: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    for name, value in setting.items():
        monkeypatch.setattr(rounds, name, value)
    log, session = tmp_path / "log", Session("test")
    measure(session, writers("ab", log), JOB, budget)
    assert log.read_text() == calls
    assert [row.timed for row in session.rows] == [timed, timed]


def test_limits_are_measured_in_every_round(tmp_path: Path) -> None:
    log, session = tmp_path / "log", Session("test")
    with one(system("limits", "limits")) as limits:
        session.limits = limits
        measure(session, writers("a", log), JOB, LONG)
        assert session.machine.fp32_flops_per_second is None  # was not measured at first
        session.machine = replace(session.machine, fp32_flops_per_second=1.0)
        measure(session, writers("a", log), JOB, LONG)
        assert session.machine.fp32_flops_per_second == 1e15
        limits.kill()
        session.measure_limits()
    assert session.notes == []


def test_others_load_by_a_deadline(tmp_path: Path) -> None:
    log, session = tmp_path / "log", Session("test")
    systems = [*writers("a", log), *writers("b", log, ours=True)]
    with loaded(session, systems, deadline=time.monotonic()) as workers:
        assert [worker.system.name for worker in workers] == ["b"]
    assert session.notes == ["a fp32 is left out: the time for loading is over"]


def test_a_strict_budget_holds(tmp_path: Path) -> None:
    session = Session("test")
    minute, second, nothing = (
        Budget(seconds=seconds, rounds=9, strict=True) for seconds in (60, 1, 0)
    )
    slow = Job(name="slow", tokens=10, arguments={"job": "slow", "sleep": 600.0})
    with loaded(session, writers("ab", tmp_path / "log")) as workers:
        alternate(session, workers, JOB, minute)
        assert names(session) == ["a", "b"]
        assert session.notes == []
        clock = time.monotonic()
        workers[1].seconds_per_token = 30.0  # so that 10 tokens are known to take 300 seconds
        alternate(session, workers, slow, second)
        assert names(session) == ["a", "b"]
        assert time.monotonic() - clock < 300
        assert session.notes[0] == "slow: a fp32 is left out: no answer within 1 s"
        assert session.notes[1].startswith("slow: b fp32 is left out: a call takes 300 s or more, ")
        assert [worker.ended for worker in workers] == [True, False]
        workers[1].seconds_per_token = 0.0
        alternate(session, workers, replace(JOB, name="again"), minute)
        assert [row.system for row in session.rows if row.job == "again"] == ["b"]
        alternate(session, workers, replace(JOB, name="none"), nothing)
        assert session.notes[-1].startswith("none: b fp32 is left out: ")
        assert "none" not in [row.job for row in session.rows]


def test_who_only_warmed_up_has_that_figure(tmp_path: Path, monkeypatch: Patch) -> None:
    calls = iter([True, False, False])  # a budget with room for one call
    monkeypatch.setattr(rounds.Turns, "fits", lambda *_, **__: next(calls))
    session = Session("test")
    measure(session, writers("a", tmp_path / "log"), JOB, Budget(seconds=60, rounds=9, strict=True))
    (row,) = session.rows
    assert row.timed == 1
    assert row.first_call
    assert "- figures of a first call only: job a fp32\n" in session.to_markdown()


def test_what_cannot_load_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    session = Session("test")
    systems = [
        system("missing", "needs_a_package"),
        system("unknown", "no_such_function"),
        *writers("s", tmp_path / "log"),
    ]
    with loaded(session, systems) as workers:
        assert [worker.system.name for worker in workers] == ["s"]
    missing, unknown = session.notes
    assert missing == "missing fp32 is left out: the package no_such_package is not installed"
    assert unknown.startswith("unknown fp32 is left out: AttributeError: ")
    assert "\n" not in unknown


def test_a_system_that_breaks_is_named(tmp_path: Path) -> None:
    session = Session("test")
    systems = [
        system("broken", "breaks", at=1, how="raise"),
        system("later", "breaks", at=3, how="raise"),
        *writers("s", tmp_path / "log"),
    ]
    measure(session, systems, JOB, Budget(seconds=60, rounds=2))
    assert [(row.system, row.first_call) for row in session.rows] == [("later", True), ("s", False)]
    assert session.notes == [
        "job: broken fp32 is left out: RuntimeError: no operator",
        "job: later fp32 takes no further part: RuntimeError: no operator",
    ]


def test_a_process_that_dies_says_how() -> None:
    killed = fault_of(system("killed", "breaks", at=1, how="kill"), sound_calls=0)
    assert killed == "its process was ended by signal 9, as when memory runs out"
    assert fault_of(system("ended", "breaks", at=3, how="exit"), sound_calls=2) == (
        "its process ended with code 3: out of luck"
    )


def test_no_answer_in_time(tmp_path: Path) -> None:
    with one(*writers("a", tmp_path / "log")) as worker:
        with pytest.raises(WorkerFault, match="no answer within 0 s"):
            worker.call({"job": "job", "sleep": 60.0}, patience=0.2)
        worker._process.kill()


def test_our_own_comes_from_the_launcher(tmp_path: Path) -> None:
    with one(*writers("a", tmp_path / "log", ours=True)) as worker:
        assert worker.call({"job": "job"}).facts == [{"job": "job", "sign": "a"}]
        command = Path(f"/proc/{worker._process.pid}/cmdline")
        if command.exists():
            assert command.read_bytes().split(b"\0")[2:5] == [b"regpt", b"bench", b"worker"]


def test_peak_memory_is_the_workers_own() -> None:
    # a worker without torch takes some 10 MB; this process, with torch, far more than 64
    peaks = []
    for megabytes in (1, 64):
        with one(system("holds", "holds", megabytes=megabytes)) as worker:
            peaks.append(worker.call({}).peak_memory_bytes or 0)
    assert peaks[0] < 40 << 20
    assert 62 << 20 < peaks[1] - peaks[0] < 66 << 20


def test_a_waiting_worker_rests(tmp_path: Path) -> None:
    with one(*writers("a", tmp_path / "log")) as worker:
        assert worker.settle()
        before = worker.processor_seconds()
        if before is None:
            pytest.skip("no /proc here")
        time.sleep(0.3)
        assert worker.processor_seconds() == before


def test_a_worker_that_does_not_rest_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    more = itertools.count()
    monkeypatch.setattr(Worker, "processor_seconds", lambda self: float(next(more)))
    session = Session("test")
    measure(session, writers("a", tmp_path / "log"), JOB, Budget(seconds=0, rounds=1))
    assert session.notes == ["job: a fp32 uses the processor while it waits"]


def test_what_else_ran_is_told(monkeypatch: Patch) -> None:
    class Idle:
        """A worker that used one of two processors."""

        def processor_seconds(self) -> float:
            return clock[0]

    clock = [0.0]
    monkeypatch.setattr(rounds, "machine_seconds", lambda: clock[0] * 1.5)
    monkeypatch.setattr(rounds.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(rounds.os, "times", lambda: (0.0,) * 5)
    others = rounds.measure_others([Idle()])  # pyright: ignore[reportArgumentType]
    assert others() is None
    clock[0] += 2.0
    assert others() == pytest.approx(0.5)


def test_the_machine_uses_at_least_what_we_use() -> None:
    before = machine_seconds()
    if before is None:
        pytest.skip("no /proc here")
    clock = time.process_time()
    while time.process_time() - clock < 0.1:
        pass
    now = machine_seconds()
    assert now is not None
    assert now - before >= 0.08


def test_first_calls_only_stand_in() -> None:
    measured = Measured(system=system("a", "load"))
    for seconds, first, timed in ((3.0, True, 1), (2.0, True, 1), (1.0, False, 1), (1.5, False, 2)):
        measured.take(Answer(seconds=[seconds], peak_memory_bytes=None, facts=[{}]), first=first)
        (row,) = measured.rows(JOB)
        assert (row.first_call, row.timed) == (first, timed)
    assert measured.rows(JOB)[0].seconds == 1.25
