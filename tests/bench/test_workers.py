"""Workers: one system per process, taking turns, its faults in one line."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.bench import harness
from regpt.bench.harness import Benchmark, Job, rows_of
from regpt.bench.worker import Answer, System, Worker, WorkerFault, started

Patch = pytest.MonkeyPatch
JOB = Job(name="job", tokens=10, arguments={"job": "job"})


@pytest.fixture(autouse=True)
def fixed(monkeypatch: Patch) -> None:
    """The workers import `bench_systems` from here; in them a call is one JOB, however short."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(source), str(Path(__file__).parent))))


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


def bench(*, seconds: float = 1e9, rounds: int = 2) -> Benchmark:
    return Benchmark(name="test", seconds=seconds, rounds=rounds)


def names(found: Benchmark) -> list[str]:
    return [row.system for row in found.rows]


def fault_of(broken: System, *, sound_calls: int) -> str:
    with one(broken) as worker:
        for _ in range(sound_calls):
            worker.call({})
        with pytest.raises(WorkerFault) as caught:
            worker.call({})
        return str(caught.value)


def test_systems_take_turns(tmp_path: Path) -> None:
    log, found = tmp_path / "log", bench(rounds=3)
    found.measure(writers("abc", log), JOB)
    done = log.read_text()
    assert "".join(sign for sign, _ in itertools.groupby(done)) == "abc" * 4
    assert done.startswith("abc"), "the first round warms up"
    assert found.notes == []
    assert names(found) == ["a", "b", "c"]
    row = found.rows[0]
    assert row.facts == {"job": "job", "sign": "a"}
    assert row.timed == done.count("a") - 1
    assert not row.first_call
    assert 0 < row.fastest_seconds <= row.seconds <= row.slowest_seconds
    assert row.tokens_per_second == 10 / row.seconds


def test_a_call_of_a_script_has_parts(tmp_path: Path) -> None:
    script, found = tmp_path / "script.py", bench()
    script.write_text(
        "def load(share):\n"
        "    return lambda: {'parts': {'first': share, 'second': 1 - share}, 'loss': 2.0}\n"
    )
    scripted = System(name="s", load=f"{script}:load", settings={"share": 0.25})
    found.measure([scripted], Job(name="job"))
    whole, first, second = found.rows
    assert [whole.job, first.job, second.job] == ["job", "job: first", "job: second"]
    assert (first.seconds, second.seconds) == (0.25, 0.75)
    assert first.timed == 2
    assert whole.tokens_per_second is None
    assert whole.facts == {"loss": 2.0}


def test_others_load_by_a_deadline(tmp_path: Path) -> None:
    log, found = tmp_path / "log", bench()
    systems = [*writers("a", log), *writers("b", log, ours=True)]
    with found.loaded(systems, deadline=time.monotonic()) as workers:
        assert [worker.system.name for worker in workers] == ["b"]
    assert found.notes == ["a fp32 is left out: no answer within 0 s"]


def test_a_budget_holds(tmp_path: Path) -> None:
    found = bench(rounds=9)
    slow = Job(name="slow", tokens=10, arguments={"job": "slow", "sleep": 600.0})
    with found.loaded(writers("ab", tmp_path / "log")) as workers:
        found.run(workers, JOB)
        assert names(found) == ["a", "b"]
        assert found.notes == []
        clock = time.monotonic()
        workers[1].seconds_per_token = 30.0  # so that 10 tokens are known to take 300 seconds
        found.run(workers, slow, seconds=1)
        assert names(found) == ["a", "b"]
        assert time.monotonic() - clock < 300
        assert found.notes[0] == "slow: a fp32 is left out: no answer within 1 s"
        assert found.notes[1].startswith("slow: b fp32 is left out: a call takes 300 s or more, ")
        assert [worker.ended for worker in workers] == [True, False]
        workers[1].seconds_per_token = 0.0
        found.run(workers, replace(JOB, name="again"))
        assert [row.system for row in found.rows if row.job == "again"] == ["b"]
        found.run(workers, replace(JOB, name="none"), seconds=0)
        assert found.notes[-1].startswith("none: b fp32 is left out: ")
        assert "none" not in [row.job for row in found.rows]


def test_who_only_warmed_up_has_that_figure(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(harness, "REPEAT_SECONDS", 1e9)  # what a round's call is expected to take
    found = bench(seconds=1e6)
    found.measure(writers("a", tmp_path / "log"), JOB)
    (row,) = found.rows
    assert row.timed == 1
    assert row.first_call
    assert "figures of a first call only: job a fp32" in found.all_notes()


def test_what_cannot_load_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    found = bench()
    systems = [
        system("missing", "needs_a_package"),
        system("unknown", "no_such_function"),
        *writers("s", tmp_path / "log"),
    ]
    with found.loaded(systems) as workers:
        assert [worker.system.name for worker in workers] == ["s"]
    missing, unknown = found.notes
    assert missing == "missing fp32 is left out: the package no_such_package is not installed"
    assert unknown.startswith("unknown fp32 is left out: AttributeError: ")
    assert "\n" not in unknown


def test_a_system_that_breaks_is_named(tmp_path: Path) -> None:
    found = bench()
    systems = [
        system("broken", "breaks", at=1, how="raise"),
        system("later", "breaks", at=3, how="raise"),
        *writers("s", tmp_path / "log"),
    ]
    found.measure(systems, JOB)
    assert [(row.system, row.first_call) for row in found.rows] == [("later", True), ("s", False)]
    assert found.notes == [
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


def test_peak_memory_is_the_workers_own() -> None:
    # a worker without torch takes some 10 MB; this process, with torch, far more than 64
    peaks = []
    for megabytes in (1, 64):
        with one(system("holds", "holds", megabytes=megabytes)) as worker:
            peaks.append(worker.call({}).peak_memory_bytes or 0)
    assert peaks[0] < 40 << 20
    assert 62 << 20 < peaks[1] - peaks[0] < 66 << 20


def test_first_calls_only_stand_in() -> None:
    answers = []
    for seconds, first, timed in ((3.0, True, 1), (1.0, False, 1), (1.5, False, 2)):
        answers.append(Answer(seconds=[seconds], peak_memory_bytes=None, facts={}))
        (row,) = rows_of(system("a", "load"), JOB, answers)
        assert (row.first_call, row.timed) == (first, timed)
    assert row.seconds == 1.25
