"""Workers: one system per process, its faults in one line, at rest while it waits."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from regpt.bench import interleaved as rounds
from regpt.bench.interleaved import Job, alternate, measure
from regpt.bench.rows import Row
from regpt.bench.workers import Answer, System, Worker, WorkerFault, loaded, machine_seconds

Patch = pytest.MonkeyPatch
JOB = Job(name="job", tokens=10, arguments={"job": "job"})


@pytest.fixture(autouse=True)
def fixed(monkeypatch: Patch) -> None:
    """The workers import `bench_systems` from here; a call is one JOB, however short."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(source), str(Path(__file__).parent))))
    monkeypatch.setattr(rounds, "MOST_REPEATS", 1)


def ignore(text: str) -> None:
    """The observer that does not look."""


def system(name: str, load: str, *, ours: bool = False, **settings: object) -> System:
    return System(
        name=name, dtype="fp32", load=f"bench_systems:{load}", settings=settings, ours=ours
    )


def writers(names: str, log: Path, *, ours: bool = False) -> list[System]:
    return [system(name, "load", ours=ours, log=str(log), sign=name) for name in names]


@contextlib.contextmanager
def one(only: System) -> Iterator[Worker]:
    with loaded([only], observe=ignore, faults=[]) as (worker,):
        yield worker


def fault_of(broken: System, *, sound_calls: int) -> str:
    with one(broken) as worker:
        for _ in range(sound_calls):
            worker.call({})
        with pytest.raises(WorkerFault) as caught:
            worker.call({})
        return str(caught.value)


def test_systems_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    faults: list[str] = []
    with loaded(writers("abc", log), observe=ignore, faults=faults) as workers:
        found = alternate(workers, JOB, seconds=1e9, rounds=3, observe=ignore, faults=faults)
    assert log.read_text() == "aabbcc" + "abc" * 3  # the first round warms up
    assert faults == []
    assert [measured.system.name for measured in found] == ["a", "b", "c"]
    assert found[0].facts == {"job": "job", "sign": "a"}
    row = found[0].row(JOB)
    assert isinstance(row, Row)
    assert row.timed == 3
    assert 0 < row.fastest_seconds <= row.seconds <= row.slowest_seconds
    assert row.tokens_per_second == 10 / row.seconds


LONG = {"seconds": 1e9, "rounds": 2}
NO_TIME = {"seconds": 0, "rounds": 5}


@pytest.mark.parametrize(
    ("setting", "budget", "calls", "timed"),
    [
        ({"MOST_REPEATS": 4, "CALL_SECONDS": 1e9}, LONG, "aabb" + "aaaabbbb" * 2, 8),
        ({}, NO_TIME, "aabbab", 1),
        ({"SLOW_SECONDS": 0.0}, NO_TIME, "ab", 1),
        ({"SLOW_SECONDS": 0.0}, LONG, "ababab", 2),
        ({}, LONG | {"together": False}, "aaaabbbb", 2),
    ],
    ids=[
        "a short job is repeated",
        "everyone is timed once even without time",
        "a slow first call stands in for want of time",
        "a slow first call is replaced by a better one",
        "one after the other",
    ],
)
def test_who_is_called_how_often(
    setting: dict, budget: dict, calls: str, timed: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    for name, value in setting.items():
        monkeypatch.setattr(rounds, name, value)
    log = tmp_path / "log"
    found = measure(writers("ab", log), JOB, observe=ignore, faults=[], **budget)
    assert log.read_text() == calls
    assert [len(measured.seconds) for measured in found] == [timed, timed]


def test_others_load_by_a_deadline(tmp_path: Path) -> None:
    log, faults = tmp_path / "log", []
    systems = [*writers("a", log), *writers("b", log, ours=True)]
    options: dict = {"observe": ignore, "faults": faults, "deadline": time.monotonic()}
    with loaded(systems, **options) as workers:
        assert [worker.system.name for worker in workers] == ["b"]
    assert faults == ["a fp32 is left out: the time for loading is over"]


def test_a_strict_budget_holds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    faults: list[str] = []
    rows: list[Row] = []
    slow = Job(name="slow", tokens=10, arguments={"job": "slow", "sleep": 600.0})
    options: dict = {"rounds": 9, "observe": ignore, "faults": faults, "strict": True}
    with loaded(writers("ab", log), observe=ignore, faults=faults) as workers:
        assert len(alternate(workers, JOB, seconds=60, found=rows.append, **options)) == 2
        assert rows[-1].system == "b"
        clock = time.monotonic()
        workers[1].pace = 30.0  # so that 10 tokens are known to take 300 seconds
        assert alternate(workers, slow, seconds=1, **options) == []
        assert time.monotonic() - clock < 300
        assert faults[0] == "slow: a fp32 is left out: no answer within 1 s"
        assert faults[1].startswith("slow: b fp32 is left out: a call takes 300 s or more, ")
        assert [worker.ended for worker in workers] == [True, False]
        workers[1].pace = 0.0
        (only,) = alternate(workers, JOB, seconds=60, **options)
        assert only.system.name == "b"
        del faults[:]
        assert alternate(workers, JOB, seconds=0, **options) == []
        assert faults[0].startswith("job: b fp32 is left out: ")


def test_who_only_warmed_up_has_that_figure(tmp_path: Path, monkeypatch: Patch) -> None:
    faults: list[str] = []
    calls = iter([True, False, False])  # a budget with room for one call
    monkeypatch.setattr(rounds.Turns, "fits", lambda *_, **__: next(calls))
    with loaded(writers("a", tmp_path / "log"), observe=ignore, faults=faults) as workers:
        options: dict = {"seconds": 60, "rounds": 9, "observe": ignore, "strict": True}
        (measured,) = alternate(workers, JOB, faults=faults, **options)
    assert len(measured.seconds) == 1
    assert faults[0] == "job: figures of a first call only: a fp32"


def test_what_cannot_load_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    systems = [
        system("missing", "needs_a_package"),
        system("unknown", "no_such_function"),
        *writers("s", tmp_path / "log"),
    ]
    faults: list[str] = []
    with loaded(systems, observe=ignore, faults=faults) as workers:
        assert [worker.system.name for worker in workers] == ["s"]
    assert faults[0] == "missing fp32 is left out: the package no_such_package is not installed"
    assert faults[1].startswith("unknown fp32 is left out: AttributeError: ")
    assert all("\n" not in fault for fault in faults)


def test_a_system_that_breaks_later_is_left_out(tmp_path: Path) -> None:
    systems = [
        system("broken", "breaks", at=3, how="raise"),
        *writers("s", tmp_path / "log"),
    ]
    faults: list[str] = []
    found = measure(systems, JOB, seconds=1, rounds=2, observe=ignore, faults=faults)
    assert [measured.system.name for measured in found] == ["s"]
    assert faults == ["job: broken fp32 is left out: RuntimeError: no operator"]


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
        assert worker.call({"job": "job"}).facts == {"job": "job", "sign": "a"}
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
    faults: list[str] = []
    with loaded(writers("a", tmp_path / "log"), observe=ignore, faults=faults) as workers:
        alternate(workers, JOB, seconds=0, rounds=0, observe=ignore, faults=faults)
    assert faults == ["job: a fp32 uses the processor while it waits"]


def test_what_else_ran_is_told(monkeypatch: Patch) -> None:
    class Idle:
        """A worker that used one of two processors."""

        def processor_seconds(self) -> float:
            return clock[0]

    clock = [0.0]
    monkeypatch.setattr(rounds, "machine_seconds", lambda: clock[0] * 1.5)
    monkeypatch.setattr(rounds.time, "monotonic", lambda: clock[0])
    others = rounds.Others()
    assert others.processors() is None
    for _ in range(2):
        with others.while_working(Idle()):  # pyright: ignore[reportArgumentType]
            clock[0] += 2.0
    assert others.processors() == pytest.approx(0.5)


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


def test_disturbed_calls_only_stand_in() -> None:
    def after(*calls: tuple[float, bool, bool]) -> list[float]:
        measured = rounds.Measured(system=system("a", "load"))
        for seconds, first, disturbed in calls:
            answer = Answer(seconds=[seconds], peak_memory_bytes=None, facts={})
            measured.take(answer, first=first, disturbed=disturbed)
        return measured.seconds

    warm, noisy, calm = (1.0, True, False), (3.0, False, True), (2.0, False, False)
    slow = (rounds.SLOW_SECONDS, True, False)
    assert after(warm) == []
    assert after(slow) == [rounds.SLOW_SECONDS]
    assert after(warm, noisy, noisy) == [3.0, 3.0]
    assert after(warm, noisy, calm) == [2.0]
    assert after(warm, calm, noisy, calm) == [2.0, 2.0]
    assert after(slow, calm) == [2.0]
