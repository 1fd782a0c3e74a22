"""The scripts of benchmarks/: how they are called, and the picture of scaling."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from regpt.bench.hardware_limits import Machine
from regpt.bench.results import Row
from regpt.bench.train import parse_job

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = Machine(cpu="a chip", cores=2, threads=2, bf16_flops_per_second=1e12)
GPU = Machine(cpu="a chip", gpu="NVIDIA H200", device="cuda", bf16_flops_per_second=1e15)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return script("scaling")


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_scaling_has_a_point_for_every_job(scaling: ModuleType, machine: Machine) -> None:
    axes = scaling.axes_for(machine)
    jobs = scaling.jobs_of(axes)
    assert len(jobs) == len(set(jobs)) < sum(len(axis.jobs) for axis in axes)
    for axis in axes:
        places = [axis.place(parse_job(job)) for job in axis.jobs]
        assert places == sorted(set(places))


def test_the_picture_of_scaling(scaling: ModuleType) -> None:
    axes = scaling.axes_for(CPU)
    rows = [
        Row(job=job, system=system, dtype="bf16", seconds=1.0, tokens_per_second=100.0,
            fastest_seconds=1.0, slowest_seconds=1.0, timed=1)
        for job in scaling.jobs_of(axes)
        for system in ("regpt", "lecture")
    ]  # fmt: skip
    for some in (rows, rows[3:9]):  # a system may have failed in some jobs
        picture = scaling.draw(some, axes, CPU)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000


@pytest.mark.parametrize("name", ["checkpoint_pause", "decoding", "evaluate", "prepare", "scaling"])
def test_a_script_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit):
        script(name).main()
    assert "--rounds" in capsys.readouterr().out
