"""`regpt bench generate` with a tiny model: the rows, the shares, what is left out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from forks import warm_python
from regpt import GPT, GPTConfig
from regpt.bench import generate, harness
from regpt.bench.hardware_limits import Machine
from regpt.bench.results import Row
from regpt.bench.worker import System
from regpt.cli import main

TINY = GPTConfig(block_size=256, n_layer=1, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench") / "model"
    torch.manual_seed(0)
    GPT(TINY).save_pretrained(directory)
    return directory


def test_rows_of_one_job_beside_peers(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, peers = generate.our_systems, generate.peer_systems
    few = ("lecture-loop", "transformers", "llama.cpp")
    monkeypatch.setattr(generate, "our_systems", lambda model: ours(model)[:1])
    monkeypatch.setattr(generate, "FORMATS", {"q8_0.gguf": "llama_cpp"})
    monkeypatch.setattr(
        generate,
        "peer_systems",
        lambda *a: [p for p in peers(*a) if p.name in few and p.dtype in ("fp32", "q8_0")],
    )
    places = [str(Path(__file__).parent), *(place for place in sys.path if place)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    limits = System(name="limits", load="bench_systems:quick_limits", settings={"device": "cpu"})
    monkeypatch.setattr(harness, "limits_system", lambda device: limits)
    out = tmp_path / "results" / "generate.md"
    flags = ["--jobs", "lecture-5x30", "--peers", "--json", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "executable", warm_python())
    main(["bench", "generate", str(model), *flags, "--out", str(out)])
    printed = capfd.readouterr()
    results = json.loads(printed.out)
    assert results["machine"]["threads"] == 1
    lines = printed.err.splitlines()
    for told in ("measuring the machine", "loading regpt auto fp32", "loading lecture-loop fp32"):
        assert told in lines
    assert any(line.startswith("  lecture-5x30: regpt auto fp32: ") for line in lines)
    rows = {(row["system"], row["dtype"]): row for row in results["rows"]}
    assert {("regpt", "fp32"), ("lecture-loop", "fp32"), ("transformers", "fp32")} <= set(rows)
    row = rows["regpt", "fp32"]
    assert row["job"] == "lecture-5x30"
    assert row["tokens_per_second"] == pytest.approx(5 * 22 / row["seconds"])
    assert row["peak_memory_bytes"] > 1e8
    text = out.read_text(encoding="utf-8")
    assert "| lecture-5x30 | regpt        | fp32  |" in text
    assert "against lecture-loop fp32" in text


def test_what_was_measured_is_left_when_it_is_stopped(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "generate.md"
    flags = ["--jobs", "lecture-5x30", "--rounds", "1000000", "--seconds", "100000"]
    process = subprocess.Popen(
        [warm_python(), "-m", "regpt", "bench", "generate", str(model), *flags, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not out.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # Ctrl-C ends it in the same way
    printed, told = process.communicate()
    assert process.returncode == 130, told
    assert "interrupted: what was measured until then" in printed
    assert "| lecture-5x30 | regpt " in printed
    assert "| lecture-5x30 | regpt " in out.read_text(encoding="utf-8")
    assert "Traceback" not in told


@pytest.mark.parametrize("flags", [["--seconds", "-1"], ["--rounds", "0"], ["--threads", "0"]])
def test_wrong_numbers_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "generate", *flags])
    assert "must be at least 1" in capsys.readouterr().err.splitlines()[-1]


def test_bytes_of_a_step_and_their_share() -> None:
    matrices = 12 * 12 * 768 * 768 + 50257 * 768
    assert generate.read_bytes(GPTConfig(), "bf16", rows=1, length=0) == 2 * matrices
    per_position = 2 * 12 * 768
    for dtype, size in (("fp32", 4), ("int8", 2)):
        matrix = generate.read_bytes(GPTConfig(), dtype, rows=5, length=0)
        both = generate.read_bytes(GPTConfig(), dtype, rows=5, length=10)
        assert both == matrix + 50 * per_position * size

    def row(engine: str, seconds: float) -> Row:
        return Row(
            job="stream-248", system="regpt", dtype="bf16", engine=engine, seconds=seconds,
            fastest_seconds=seconds, slowest_seconds=seconds, timed=3,
        )  # fmt: skip

    needed = generate.read_bytes(GPTConfig(), "bf16", rows=1, length=8 + 124)
    rows = [row("fast", 2.48), row("auto", 0.5)]
    limit = Machine(read_bytes_per_second=needed / 0.01 * 2)
    columns = generate.columns(GPTConfig(), limit, rows)
    # drafted tokens are not read for one by one
    assert [columns[-1].cell(row) for row in rows] == ["50%", ""]
    fast = row("fast", 0.62)
    columns = generate.columns(GPTConfig(), limit, [fast])
    assert columns[-1].cell(fast) == "100%"


def test_an_unknown_job_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "generate", "--jobs", "lecture-6x30"])
    assert "unknown job 'lecture-6x30': choose among lecture-5x30" in capsys.readouterr().err
