"""Rows and results: the JSON line, ratios, the table, the file, the command that is kept."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from regpt.bench.hardware_limits import Machine
from regpt.bench.results import SPREAD, Results, collect, find_commit, write_results
from regpt.bench.rows import (
    Baseline,
    Row,
    duration,
    faster_than,
    markdown,
    memory_against,
    speedups,
    table,
    usual_columns,
    wide_enough,
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
    cpu="a chip", cores=2, threads=2, memory_bytes=1 << 34, torch="2.13.0", gpu=None, device="cpu"
)


def results(**other: object) -> Results:
    values: dict = {
        "benchmark": "train",
        "rows": ROWS,
        "machine": {"cpu": "a chip", "cores": 2},
        "place": "a chip, 2 cores",
        "date": "2026-11-21",
        "commit": "abc1234",
        "command": "regpt bench train",
        "notes": ["transformers is left out: the package transformers is not installed"],
    }
    return Results(**(values | other))


def test_the_line_for_programs() -> None:
    line = results().to_json()
    assert "\n" not in line
    found = json.loads(line)
    assert set(found) >= {"benchmark", "rows", "machine", "date", "commit"}
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
    with_engine = json.loads(results(rows=[row("regpt", 1.0, engine="fast")]).to_json())
    assert with_engine["rows"][0]["engine"] == "fast"


def test_ratios_are_within_a_job() -> None:
    speed = faster_than(Baseline(system="lecture", dtype="fp32"), ROWS)
    assert [speed.cell(each) for each in ROWS] == ["4.00x", "1.00x", "2.00x", ""]
    bases = [Baseline(system=name, dtype="bf16") for name in ("lecture", "absent", "regpt")]
    there = [column.heading for column in speedups(bases, ROWS)]
    assert there == ["against lecture bf16", "against regpt bf16"]
    memory = memory_against(Baseline(system="lecture"), ROWS)
    assert [memory.cell(each) for each in ROWS] == ["50%", "100%", "", ""]


def test_the_table_shows_every_figure() -> None:
    columns = [*usual_columns(ROWS, per="step"), faster_than(Baseline(system="lecture"), ROWS)]
    console = wide_enough(Console(file=io.StringIO(), width=20), table(ROWS, columns))
    console.print(table(ROWS, columns))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert max(len(line) for line in drawn.splitlines()) <= console.width < 100
    for text in ("step", "250 ms", "4.00x", "0.50 GB", "not measured", "10% of 3", "against"):
        assert text in drawn
    assert "engine" not in drawn
    assert "engine" in markdown(ROWS, usual_columns([row("regpt", 1, engine="fast")]))


def test_durations() -> None:
    cases = {0.0123: "12.3 ms", 0.5: "500 ms", 1.0: "1 s", 22.345: "22.3 s"}
    assert {seconds: duration(seconds) for seconds in cases} == cases


def test_the_file_to_keep(tmp_path: Path) -> None:
    text = results().to_markdown(usual_columns(ROWS), more="More.\n")
    path = tmp_path / "new" / "results.md"
    write_results(path, text)
    assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["results.md"]
    for part in ("# train, 2026-11-21", "abc1234", "regpt bench train", "| job | regpt |", "More."):
        assert part in text
    assert "not installed" in text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"results\.md: cannot be written"):
        write_results(tmp_path / "file" / "results.md", "text")


def test_the_commit() -> None:
    commit = find_commit()
    assert commit is None or len(commit.split()[0]) >= 7


@pytest.mark.parametrize("place", [["--out", "a place/of mine.md"], ["--out=a place/of mine.md"]])
def test_what_is_collected(place: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/regpt", "bench", "train", *place, "--data", "my text"])
    found = collect("train", MACHINE, ROWS, notes=["shares: a formula"], faults=["why"])
    assert found.command == "regpt bench train --data 'my text'"
    assert found.notes == [MACHINE.describe_limits(), "shares: a formula", SPREAD, "why"]
    assert (found.benchmark, found.rows, found.place) == ("train", ROWS, MACHINE.describe())
    assert len(found.date) == 10


@pytest.mark.parametrize(("faults", "why"), [(["a", "b"], "a; b"), ([], "no time")])
def test_nothing_measured_is_one_line(faults: list[str], why: str) -> None:
    with pytest.raises(UserError, match=f"^nothing could be measured: {why}$"):
        collect("generate", MACHINE, [], notes=[], faults=faults)
