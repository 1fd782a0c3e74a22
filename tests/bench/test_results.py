"""Rows and benchmarks: the JSON line, ratios, the table, the file, the command that is kept."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from regpt.bench.hardware_limits import Machine, share
from regpt.bench.harness import SPREAD, Benchmark
from regpt.bench.results import (
    Row,
    against,
    command_line,
    duration,
    find_commit,
    markdown,
    usual_columns,
)
from regpt.system.errors import UserError


def row(system: str, seconds: float, *, job: str = "job", **other: object) -> Row:
    values: dict = {
        "dtype": "fp32",
        "tokens_per_second": 100 / seconds,
        "peak_memory_bytes": 1_000_000_000,
        "fastest_seconds": seconds,
        "slowest_seconds": seconds * 1.1,
        "timed": 3,
    }
    return Row(job=job, system=system, seconds=seconds, **(values | other))


ROWS = [
    row("regpt", 0.25, dtype="bf16", peak_memory_bytes=500_000_000),
    row("lecture", 1.0),
    row("lecture", 0.5, dtype="bf16", peak_memory_bytes=None),
    row("regpt", 2.0, job="other"),
]
MACHINE = Machine(
    cpu="a chip",
    cores=2,
    threads=2,
    memory_bytes=1 << 34,
    torch="2.13.0",
    read_bytes_per_second=50e9,
)


def session(rows: Sequence[Row] = ROWS, **options: object) -> Benchmark:
    made = Benchmark(name="train", seconds=60.0, rounds=3, **options)  # pyright: ignore
    made.machine = MACHINE
    for each in rows:
        made.found(each)
    return made


def test_the_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    session(json=True).show()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    found = json.loads(line)
    assert set(found) >= {"benchmark", "rows", "machine", "date", "commit", "command", "notes"}
    assert found["rows"][0] == {
        "job": "job",
        "system": "regpt",
        "dtype": "bf16",
        "seconds": 0.25,
        "tokens_per_second": 400.0,
        "peak_memory_bytes": 500_000_000,
        "fastest_seconds": 0.25,
        "slowest_seconds": 0.275,
        "timed": 3,
    }
    assert row("regpt", 1.0, engine="fast").to_json()["engine"] == "fast"
    assert row("regpt", 1.0, facts={"loss": 2.0}).to_json()["facts"] == {"loss": 2.0}


def test_ratios_are_within_a_job() -> None:
    speed = against(ROWS, "lecture", "fp32")
    assert speed.heading == "against lecture fp32"
    assert [speed.cell(each) for each in ROWS] == ["4.00x", "1.00x", "2.00x", ""]


def test_the_table_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    session().show()
    drawn = capsys.readouterr().out
    for text in ("seconds", "250 ms", "0.50 GB", "not measured", "10% of 3", "a chip, 2 cores"):
        assert text in drawn
    assert "| job   | regpt   | bf16  |  250 ms |" in drawn
    assert len({len(line) for line in drawn.splitlines() if line.startswith("|")}) == 1
    columns = [*usual_columns(), against(ROWS, "lecture", "fp32")]
    text = markdown(ROWS, columns)
    for part in ("4.00x", "against lecture fp32"):
        assert part in text


def test_columns_with_nothing_to_say_are_left_out() -> None:
    columns = [*usual_columns(), against(ROWS, "absent", "fp32")]
    text = markdown(ROWS, columns)
    assert "engine" not in text
    assert "absent" not in text
    assert "engine" in markdown([row("regpt", 1, engine="fast")], columns)


def test_a_difference_of_times_may_be_negative() -> None:
    lost = row("regpt", -10.6, fastest_seconds=-10.6, slowest_seconds=-9.54)
    cells = {column.heading: column.cell(lost) for column in usual_columns()}
    assert (cells["seconds"], cells["spread of n"]) == ("-10.6 s", "10% of 3")


def test_durations() -> None:
    cases = {0.0123: "12.3 ms", 0.5: "500 ms", 1.0: "1 s", 22.345: "22.3 s"}
    assert {seconds: duration(seconds) for seconds in cases} == cases


def test_the_file_to_keep_is_there_from_the_first_row_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.md"
    under_way = session(ROWS[:1], out=path, definitions=["shares: a formula"])
    text = path.read_text(encoding="utf-8")
    assert "| job | regpt  |" in text
    assert "lecture" not in text
    under_way.note("transformers is left out: the package transformers is not installed")
    under_way.found(row("regpt", 2.0, dtype="bf16"))
    under_way.found(row("lecture", 2.0, first_call=True))
    text = path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["results.md"]
    assert text.startswith("# train, 20")
    for part in ("a chip, 2 cores", "memory read 50 GB/s", "shares: a formula", SPREAD,
                 "not installed", "figures of a first call only: job lecture fp32"):  # fmt: skip
        assert part in text
    assert text.count("| job | regpt   |") == 1


def test_what_is_done_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    under_way = session([row("regpt", 2.0, first_call=True)])
    for _ in range(2):
        under_way.tell("job: regpt")
        under_way.note("odd")
        under_way.found(row("regpt", 0.5))
    told = capsys.readouterr().err.splitlines()
    assert told == ["job: regpt", "note: odd", "  job: regpt fp32: 500 ms, 200 tokens/s"]
    assert under_way.notes == ["odd"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"results\.md: cannot be written"):
        session(out=tmp_path / "file" / "results.md")


def test_the_commit() -> None:
    commit = find_commit()
    assert commit is None or len(commit.split()[0]) >= 7


@pytest.mark.parametrize("place", [["--out", "a place/of mine.md"], ["--out=a place/of mine.md"]])
def test_the_command_that_is_kept(place: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/regpt", "bench", "train", *place, "--data", "/y/my text"])
    assert command_line() == "regpt bench train --data 'my text'"
    monkeypatch.setattr("sys.argv", ["/x/regpt/__main__.py", "bench", "train"])
    assert command_line() == "regpt bench train"
    monkeypatch.setattr("sys.argv", ["/x/benchmarks/scaling.py", *place])
    assert command_line() == "python benchmarks/scaling.py"


@pytest.mark.parametrize(("notes", "why"), [(["a", "b"], "a; b"), ([], "no time")])
def test_nothing_measured_is_one_line(notes: list[str], why: str) -> None:
    empty = session([])
    empty.notes += notes
    with pytest.raises(UserError, match=f"^nothing could be measured: {why}$"):
        empty.show()


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="odd"), session([], device="odd").running():
        raise AssertionError


def test_no_system_is_above_a_limit() -> None:
    assert share(40e9, 80e9, [40e9]) == "50%"
    assert share(60e9, 50e9, [40e9, 60e9]) == "100%"
    assert share(60e9, None, [60e9]) == ""
