"""`regpt bench train`: jobs, formulas, systems that do the same work, the whole command."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from forks import warm_python
from regpt import GPTConfig
from regpt.bench import hardware_limits, harness, train, train_systems
from regpt.bench.hardware_limits import Machine, load
from regpt.bench.results import Row
from regpt.bench.train import (
    CPU_JOBS,
    CUDA_JOBS,
    SHAPES,
    choose_systems,
    columns,
    flops_per_token,
    parse_job,
)
from regpt.bench.worker import System
from regpt.commands import bench_train as command
from regpt.system.errors import UserError

TINY = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)
CPU = Machine(
    cpu="a chip",
    cores=2,
    threads=2,
    memory_bytes=1 << 34,
    torch="2.13.0",
    bf16_flops_per_second=1e12,
    fp32_flops_per_second=2e11,
)


def gpu(name: str = "NVIDIA H200") -> Machine:
    facts = asdict(CPU) | {"gpu": name, "device": "cuda"}
    return Machine(**facts)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)


def names(systems: list[System]) -> list[str]:
    return [system.title for system in systems]


def test_jobs_are_named_by_what_they_are() -> None:
    step = parse_job("step-124M-B4-T256")
    assert (step.batch_size, step.block_size, step.tokens) == (4, 256, 1024)
    assert step.shape == GPTConfig()
    for name in CPU_JOBS + CUDA_JOBS:
        assert parse_job(name).name == name
    for name in ("step-125M-B4-T32", "step-124M-B0-T32", "step-124M", "124M-B4-T32"):
        with pytest.raises(
            UserError, match="is not step-SIZE-Bn-Tn with SIZE one of 16M, 30M, 124M"
        ):
            parse_job(name)
    with pytest.raises(UserError, match="1024 positions"):
        parse_job("step-124M-B1-T1025")


def test_the_formula() -> None:
    assert [f"{shape.num_parameters() / 1e6:.0f}M" for shape in SHAPES.values()] == list(SHAPES)
    assert flops_per_token(GPTConfig(), 1024) == 6 * 124_439_808 + 12 * 12 * 12 * 64 * 1024


def test_who_takes_part() -> None:
    assert names(choose_systems(CPU, peers=False, few=False)) == ["regpt bf16"]
    everyone = ["regpt bf16", "lecture bf16", "lecture fp32"]
    everyone += ["transformers bf16", "transformers fp32"]
    assert names(choose_systems(CPU, peers=True, few=False)) == everyone
    assert names(choose_systems(CPU, peers=True, few=True)) == everyone[:2]
    old = Machine(**(asdict(CPU) | {"bf16_flops_per_second": None}))  # pyright: ignore
    assert names(choose_systems(old, peers=True, few=False)) == [
        "regpt fp32",
        "lecture fp32",
        "transformers fp32",
    ]
    everyone.insert(1, "lecture-compiled bf16")
    assert names(choose_systems(gpu(), peers=True, few=False)) == everyone
    assert names(choose_systems(gpu(), peers=True, few=True)) == everyone[:2]
    assert [system.ours for system in choose_systems(gpu(), peers=True, few=True)] == [True, False]


def row(job: str, system: str = "regpt", dtype: str = "bf16", **other: object) -> Row:
    values: dict = {"seconds": 1.0, "tokens_per_second": 100.0, "fastest_seconds": 1.0,
                    "slowest_seconds": 1.0, "timed": 1}  # fmt: skip
    return Row(job=job, system=system, dtype=dtype, **(values | other))


def test_shares_of_the_limits() -> None:
    half = 1e12 / flops_per_token(GPTConfig(), 1024) / 2
    rows = [row("step-124M-B4-T1024", tokens_per_second=half)]

    def shown(machine: Machine) -> dict[str, str]:
        return {
            column.heading: column.cell(rows[0])
            for column in columns(machine, rows)
            if column.heading in ("of bf16 limit", "MFU")
        }

    assert shown(CPU) == {"of bf16 limit": "50%", "MFU": ""}
    assert shown(gpu()) == {"of bf16 limit": "50%", "MFU": "0%"}
    assert shown(gpu("a new chip"))["MFU"] == ""


def test_memory_beside_the_lectures() -> None:
    job = "step-124M-B4-T32"
    rows = [
        row(job, peak_memory_bytes=500),
        row(job, "lecture", peak_memory_bytes=1000),
        row(job, "lecture", "fp32", peak_memory_bytes=None),
    ]
    memory = columns(CPU, rows)[-1]
    assert memory.heading == "memory of lecture bf16's"
    assert [memory.cell(each) for each in rows] == ["50%", "100%", ""]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_systems_do_the_same_steps(text_file: Path, dtype: str) -> None:
    settings: dict = {
        "shape": vars(TINY),
        "dtype": dtype,
        "batch_size": 2,
        "block_size": 16,
        "device": "cpu",
        "data": [str(text_file)],
    }
    losses = {}
    for name in ("ours", "lecture", "transformers"):
        call = getattr(train_systems, name)(**settings)
        losses[name] = torch.tensor([call()["loss"] for _ in range(4)])
    # ours and the lecture's start from one seed and see one text
    tolerance = 1e-5 if dtype == "fp32" else 2e-2
    torch.testing.assert_close(losses["ours"], losses["lecture"], atol=tolerance, rtol=0.0)
    torch.testing.assert_close(losses["transformers"], losses["lecture"], atol=0.1, rtol=0.0)
    assert losses["ours"].unique().numel() == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_systems_on_a_gpu(text_file: Path) -> None:
    settings: dict = {
        "shape": vars(TINY),
        "dtype": "bf16",
        "batch_size": 2,
        "block_size": 16,
        "device": "cuda",
        "data": [str(text_file)],
    }
    first = []
    for name, more in (("ours", {}), ("lecture", {}), ("lecture", {"compiled": True})):
        facts = getattr(train_systems, name)(**settings, **more)()
        first.append(float(str(facts["loss"])))
    torch.testing.assert_close(first, [first[0]] * 3, atol=5e-2, rtol=0.0)


def test_systems_that_do_not_fit_together_go_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = parse_job("step-124M-B4-T1024")
    for size, fits in ((1 << 40, True), (1 << 30, False)):
        monkeypatch.setattr(train, "available_memory", lambda device, size=size: size)
        assert train.fit_together(step, 5, CPU) is fits
    assert train.fit_together(step, 1, CPU)
    assert not train.fit_together(step, 5, gpu())


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_limits, "SECONDS_EACH", 0.01)
    monkeypatch.setattr(hardware_limits, "CPU_MATRIX", 64)
    monkeypatch.setattr(hardware_limits, "CPU_BUFFER", 1 << 20)
    found = Machine(**load("cpu")())  # pyright: ignore[reportArgumentType]
    assert found.device == "cpu"
    assert found.cores >= 1
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    for limit in (found.read_bytes_per_second, found.fp32_flops_per_second):
        assert limit is not None
        assert 0 < limit < float("inf")
    assert f"torch {torch.__version__}" in found.describe()
    assert "memory read" in found.describe_limits()
    unknown = Machine(**(asdict(found) | {"bf16_flops_per_second": None}))  # pyright: ignore
    assert "bf16 not measured" in unknown.describe_limits()


@pytest.mark.usefixtures("tiny")
def test_the_whole_command(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    room = "regpt.bench.train_systems"
    systems = [
        System(name="regpt", dtype="fp32", load=f"{room}:ours", ours=True),
        System(name="lecture", dtype="fp32", load=f"{room}:lecture"),
        System(name="elsewhere", dtype="fp32", load="no_such_package:load"),
    ]
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    limits = System(name="limits", load="bench_systems:limits")
    monkeypatch.setattr(harness, "limits_system", lambda device: limits)
    monkeypatch.setattr(train, "choose_systems", lambda *given, **named: systems)
    monkeypatch.setattr(sys, "argv", ["regpt", "bench", "train", "--out", str(tmp_path)])
    monkeypatch.setattr(sys, "executable", warm_python())
    out = tmp_path / "results.md"
    command.bench_train(
        jobs=("step-tiny-B2-T16",),
        rounds=1,
        device="cpu",
        data=(str(text_file),),
        json=True,
        out=str(out),
    )
    results = json.loads(capsys.readouterr().out)
    assert results["benchmark"] == "train"
    assert results["command"] == "regpt bench train"
    assert [row["system"] for row in results["rows"]] == ["regpt", "lecture"]
    for each in results["rows"]:
        assert each["job"] == "step-tiny-B2-T16"
        assert each["dtype"] == "fp32"
        assert each["tokens_per_second"] == pytest.approx(32 / each["seconds"])
        assert 50e6 < each["peak_memory_bytes"] < 4e9  # torch is in it, and not much more
    missing = "elsewhere fp32 is left out: the package no_such_package is not installed"
    assert missing in results["notes"]
    text = out.read_text()
    assert missing in text
    assert "| step-tiny-B2-T16 | regpt   | fp32  |" in text
    assert str(tmp_path) not in text


def test_numbers_that_are_none_are_one_line() -> None:
    with pytest.raises(UserError, match="rounds must be at least 1"):
        command.bench_train(rounds=0)
    with pytest.raises(UserError, match="seconds not negative"):
        command.bench_train(seconds=float("nan"))
    with pytest.raises(UserError, match="threads must be at least 1"):
        command.bench_train(threads=0)
