"""Workers: one system per process, its faults in one line, at rest while it waits."""

import itertools
import os
import time
from pathlib import Path

import pytest

from regpt.bench import rounds
from regpt.bench.rounds import Job, alternate, measure
from regpt.bench.rows import Row
from regpt.bench.workers import Answer, System, Worker, WorkerFault, loaded, machine_seconds

JOB = Job(name="job", tokens=10, arguments={"job": "job"})


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers import `bench_systems` from here; a call is one JOB, however short."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(source), str(Path(__file__).parent))))
    monkeypatch.setattr("regpt.bench.rounds.MOST_REPEATS", 1)


def ignore(text: str) -> None:
    """The observer that does not look."""


def system(name: str, load: str, *, ours: bool = False, **settings: object) -> System:
    return System(
        name=name, dtype="fp32", load=f"bench_systems:{load}", settings=settings, ours=ours
    )


def writers(names: str, log: Path, *, ours: bool = False) -> list[System]:
    return [system(name, "load", ours=ours, log=str(log), sign=name) for name in names]


def fault_of(worker_system: System, *, sound_calls: int) -> str:
    worker = Worker(worker_system)
    try:
        worker.load()
        for _ in range(sound_calls):
            worker.call({})
        with pytest.raises(WorkerFault) as caught:
            worker.call({})
        return str(caught.value)
    finally:
        worker.close()


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


def test_a_short_job_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regpt.bench.rounds.MOST_REPEATS", 4)
    monkeypatch.setattr("regpt.bench.rounds.CALL_SECONDS", 1e9)
    log = tmp_path / "log"
    found = measure(writers("ab", log), JOB, seconds=1e9, rounds=2, observe=ignore, faults=[])
    assert log.read_text() == "aabb" + "aaaabbbb" * 2
    assert [len(measured.seconds) for measured in found] == [8, 8]


def test_everyone_is_timed_once_even_without_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = measure(writers("ab", log), JOB, seconds=0, rounds=5, observe=ignore, faults=[])
    assert log.read_text() == "aabbab"
    assert [len(measured.seconds) for measured in found] == [1, 1]


def test_a_slow_first_call_stands_in_for_want_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regpt.bench.rounds.SLOW_SECONDS", 0.0)
    log = tmp_path / "log"
    found = measure(writers("ab", log), JOB, seconds=0, rounds=5, observe=ignore, faults=[])
    assert log.read_text() == "ab"
    assert [len(measured.seconds) for measured in found] == [1, 1]


def test_a_slow_first_call_is_replaced_by_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regpt.bench.rounds.SLOW_SECONDS", 0.0)
    log = tmp_path / "log"
    found = measure(writers("ab", log), JOB, seconds=1e9, rounds=2, observe=ignore, faults=[])
    assert log.read_text() == "ab" * 3
    assert [len(measured.seconds) for measured in found] == [2, 2]


def test_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    measure(
        writers("ab", log),
        JOB,
        seconds=1e9,
        rounds=2,
        observe=ignore,
        faults=[],
        together=False,
    )
    assert log.read_text() == "aaaabbbb"


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
    worker = Worker(*writers("a", tmp_path / "log"))
    try:
        worker.load()
        with pytest.raises(WorkerFault, match="no answer within 0 s"):
            worker.call({"job": "job", "sleep": 60.0}, patience=0.2)
    finally:
        worker._process.kill()
        worker.close()


def test_our_own_comes_from_the_launcher(tmp_path: Path) -> None:
    worker = Worker(*writers("a", tmp_path / "log", ours=True))
    try:
        worker.load()
        assert worker.call({"job": "job"}).facts == {"job": "job", "sign": "a"}
        command = Path(f"/proc/{worker._process.pid}/cmdline")
        if command.exists():
            assert command.read_bytes().split(b"\0")[2:5] == [b"regpt", b"bench", b"worker"]
    finally:
        worker.close()


def test_peak_memory_is_the_workers_own() -> None:
    # a worker without torch takes some 10 MB; this process, with torch, far more than 64
    peaks = []
    for megabytes in (1, 64):
        worker = Worker(system("holds", "holds", megabytes=megabytes))
        worker.load()
        peaks.append(worker.call({}).peak_memory_bytes or 0)
        worker.close()
    assert peaks[0] < 40 << 20
    assert 62 << 20 < peaks[1] - peaks[0] < 66 << 20


def test_a_waiting_worker_rests(tmp_path: Path) -> None:
    worker = Worker(*writers("a", tmp_path / "log"))
    try:
        worker.load()
        assert worker.settle()
        before = worker.processor_seconds()
        if before is None:
            pytest.skip("no /proc here")
        time.sleep(0.3)
        assert worker.processor_seconds() == before
    finally:
        worker.close()


def test_a_worker_that_does_not_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = itertools.count()
    monkeypatch.setattr(Worker, "processor_seconds", lambda self: float(next(more)))
    faults: list[str] = []
    with loaded(writers("a", tmp_path / "log"), observe=ignore, faults=faults) as workers:
        alternate(workers, JOB, seconds=0, rounds=0, observe=ignore, faults=faults)
    assert faults == ["job: a fp32 uses the processor while it waits"]


def test_what_else_ran_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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
