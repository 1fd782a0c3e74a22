"""benchmarks/gpu.py: every part of it on a CPU, and what it makes of parts that go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from forks import warm_python
from packings import small_gpt, texts
from regpt import SamplingParams, complete

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
LANES = (
    (sys.executable, "pytest"),  # which wants its plugins not imported yet
    (warm_python(), "environment", "text", "lecture", "larger", "nccl"),
    (warm_python(), "parity", "compiled", "ours", "decoding", "killed", "doctor"),
)
"""Its parts, in lots that run beside each other, each by its Python."""


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import gpu  # pyright: ignore[reportMissingImports]

        yield gpu
    finally:
        sys.path.remove(str(SCRIPT.parent))


def command(out: Path, *words: str, python: str = sys.executable) -> list[str]:
    return [python, str(SCRIPT), "--small", "--out", str(out), "--only", *words]


def results(out: Path) -> tuple[dict, str]:
    """What is in gpu.json, and gpu.md."""
    found = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    return found, (out / "gpu.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every part as it went with --small, by its name."""
    folders = [tmp_path_factory.mktemp("gpu") for _ in LANES]
    lanes = [
        subprocess.Popen(command(out, *words, python=python), stderr=subprocess.PIPE, text=True)
        for out, (python, *words) in zip(folders, LANES, strict=True)
    ]
    said = [lane.communicate()[1] for lane in lanes]
    found = {}
    for lane, out, text in zip(lanes, folders, said, strict=True):
        log = (out / "gpu.log").read_text(encoding="utf-8")
        assert lane.returncode == 0, f"{text}\n{log[-3000:]}"
        summary, markdown = results(out)
        assert summary["small"] is True
        assert "**small, on a CPU: figures mean nothing**" in markdown
        for part in summary["parts"]:
            found[part["name"]] = part
            section = markdown.split(f"\n## {part['name']}\n")[1].split("\n## ")[0]
            assert section.count("\n| ") == len(part["rows"]) + 2
            assert section.count("\n- ") == len(part["notes"])
    return found


def test_every_part_runs(gpu: ModuleType, parts: dict[str, dict]) -> None:
    assert parts.keys() == {plan.name for plan in gpu.PLANS}
    for name, part in parts.items():
        assert part["status"] == "done", name
        assert part["rows"], name
        assert all(row.get("verdict") != "DIFFERS" for row in part["rows"]), name


def column(part: dict, name: str) -> list:
    return [row.get(name) for row in part["rows"]]


def test_the_rows_are_there(parts: dict[str, dict]) -> None:
    assert {"python", "torch", "transformers"} <= set(column(parts["environment"], "what"))
    assert "skipped" in parts["pytest -m gpu"]["rows"][0]["measured"]
    parity = column(parts["parity with transformers"], "what")
    for check in ("logits, float32", "logits, bfloat16", "gradients", "greedy text, generate"):
        assert check in parity
    assert any("tf32" in what for what in parity)
    assert len(parts["text against the CPU"]["rows"]) == 4
    steps = {name: part["rows"] for name, part in parts.items() if name.startswith("training")}
    assert [len(rows) for rows in steps.values()] == [1, 1, 2]
    for row in sum(steps.values(), parts["larger models"]["rows"]):
        assert row["tokens/s"] > 0
        assert 9 < row["loss"] < 12
    assert "tf32" in parts["training step: the lecture's script"]["notes"][0]
    decoding = parts["decoding"]["rows"]
    systems = ["regpt plain bf16", "regpt fast fp32", "gpt-fast-like bf16", "transformers bf16"]
    assert [(row["system"], row["job"]) for row in decoding] == [
        (system, job) for system in systems for job in ("1 row", "8 rows")
    ]
    losses = parts["killed and resumed"]["rows"][2]
    assert losses["measured"] == "bit-equal"
    assert len(parts["nccl with one process"]["rows"]) == 2
    assert parts["doctor"]["rows"][-1]["what"].startswith("memory with 2 sequences")


PARTS = """
import os, subprocess, sys, time

def fine(part):
    part.row(what="a row", found=1234.5)

def fails(part):
    part.row(what="before it failed")
    raise ValueError("no such thing\\nand more")

def dies(part):
    os.kill(os.getpid(), 9)

def hangs(part):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part.row(what="child", found=child.pid)
    time.sleep(600)

def wants(part):
    import a_package_nobody_has.inside

def differs(part):
    part.compared("numbers", agrees=False, measured="2", required="1")
"""


def alive(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_that_go_wrong(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_parts.py").write_text(PARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "SMALL_PATIENCE", 1)
    names = ("fails", "dies", "wants", "hangs", "differs", "fine")
    plans = [
        gpu.Plan(name=name, place=f"odd_parts:{name}", limit=3 if name == "hangs" else 60, least=1)
        for name in names
    ]
    late = gpu.Plan(name="late", place="odd_parts:fine", limit=1e6, least=1e6)
    kept = gpu.allowance([plans[0], late], 0, 1e6 + 7)
    assert kept == 7, "what a later part needs at least is kept for it"
    plans[-1:-1] = [late]
    monkeypatch.setattr(gpu, "TOTAL_SECONDS", 1e6)
    monkeypatch.setattr(gpu, "allowance", lambda plans, index, left: min(plans[index].limit, left))
    done = {found.name: found for found in gpu.run(plans, small=True, out=tmp_path / "out")}
    assert done["fails"].status == "failed: ValueError: no such thing"
    assert done["fails"].rows == [{"what": "before it failed"}]
    assert done["dies"].status == "failed: its process was ended by signal 9"
    assert done["wants"].status == "skipped: the package a_package_nobody_has is not installed"
    assert done["hangs"].status == "over its limit of 3 s: ended"
    assert done["late"].status.startswith("not begun: ")
    assert done["fine"].status == "done"
    (row,) = done["hangs"].rows
    assert not alive(row["found"]), "a part's own processes end with it"
    faulty = {name for name, found in done.items() if found.faulty}
    assert faulty == {"fails", "dies", "hangs", "differs"}
    summary, markdown = results(tmp_path / "out")
    assert [part["name"] for part in summary["parts"]] == list(done)
    assert "| a row | 1,234 |" in markdown


def test_a_missing_package_skips_its_part(tmp_path: Path) -> None:
    """transformers is hidden, as on a machine that lacks it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['transformers'] = None\n", encoding="utf-8"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command(tmp_path / "out", "parity"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (part,) = results(tmp_path / "out")[0]["parts"]
    assert part["status"] == "skipped: the package transformers is not installed"


def test_what_was_measured_is_there_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(out, "environment"), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (out / "gpu.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, 130), "done, or interrupted"
    (part,) = results(out)[0]["parts"]
    assert part["status"] in ("done", "interrupted")
    assert part["rows"]


def test_words_that_name_no_part(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "nonsense"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part's name holds nonsense" in done.stderr


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`")  # torch's own, when inductor loads
@torch.no_grad()
def test_the_loop_beside_ours_writes_our_greedy_text(gpu: ModuleType) -> None:
    """The rival computes GPT-2 too: the likeliest token at every step. Compiled: in its part."""
    from gpu_parts.compiled_loop import (  # pyright: ignore[reportMissingImports]
        StaticGPT,
        next_tokens,
        write,
    )

    model, prompt = small_gpt(), texts(6)[0]
    params = SamplingParams(temperature=0.0, num_samples=1, max_length=24, stop_at_eot=False)
    (expected,) = complete(model, prompt, params)
    net = StaticGPT(model, rows=2, length=24, dtype=torch.float32)
    tokens = write(net, next_tokens, prompt, 18, top_k=1)
    assert tokens.tolist() == [expected[6:]] * 2
