"""`regpt bench train`: the training step beside others, and how its cost grows."""

import sys
from collections.abc import Sequence
from pathlib import Path

from regpt.bench.hardware_limits import Machine, find_machine
from regpt.bench.results import Results, collect, show, write_results
from regpt.bench.rows import Column, Row, usual_columns
from regpt.bench.scaling import axes_for, draw, jobs_of
from regpt.bench.train import (
    CPU_JOBS,
    CUDA_JOBS,
    FORMULA,
    Step,
    choose_systems,
    parse_job,
    run_step,
    train_columns,
)
from regpt.commands.benching import Telling, check_limits
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.system.runtime import find_device

SECONDS, GROWTH_SECONDS = 90.0, 15.0


def plan(jobs: tuple[str, ...], growth: bool, machine: Machine) -> list[Step]:
    """The jobs to do: those named, or the usual ones."""
    usual = CUDA_JOBS if machine.device == "cuda" else CPU_JOBS
    names = jobs_of(axes_for(machine)) if growth else jobs or usual
    return [parse_job(name) for name in names]


def write(
    path: Path, results: Results, columns: Sequence[Column], *, growth: bool, machine: Machine
) -> None:
    """The results file; with growth, the picture beside it."""
    if not growth:
        write_results(path, results.to_markdown(columns))
        return
    more = f"![tokens per second along three axes]({path.with_suffix('.png').name})\n"
    picture = draw(results.rows, axes_for(machine), machine)
    write_results(path, results.to_markdown(columns, more=more), picture=picture)


def bench_train(
    *,
    jobs: tuple[str, ...] = (),
    peers: bool = False,
    growth: bool = False,
    seconds: float | None = None,
    rounds: int = 8,
    device: str = "auto",
    threads: int | None = None,
    data: tuple[str, ...] = ("pydocs",),
    json: bool = False,
    out: str | None = None,
) -> None:
    """Time a training step: tokens per second, share of this machine's limit, peak memory.

    Args:
        jobs: Which, as step-124M-B4-T256; default: three on a CPU, four sizes on a GPU.
        peers: Time a plain loop as in the lecture and transformers too, in alternating rounds.
        growth: Sequence length, batch and model size instead, with a picture beside --out.
        seconds: Time for the steps of one job, all systems together; what does not fit is left
            out. Default: about 90, with growth 15, and every system once.
        rounds: At most so many rounds for each job.
        device: auto, cpu or cuda.
        threads: CPU threads; default: torch's choice.
        data: What to train on: pydocs, or UTF-8 text files.
        json: Print one JSON object, and the table on stderr.
        out: Write the table to this Markdown file, from the first row on.
    """
    check_limits(rounds, seconds, threads)
    find_device(device)
    if jobs and growth:
        raise UserError("jobs and growth: growth has jobs of its own; leave one out")
    for name in jobs:
        parse_job(name)  # a wrong name is told before anything is measured
    strict = seconds is not None
    if seconds is None:
        seconds = GROWTH_SECONDS if growth else SECONDS
    rows: list[Row] = []
    telling = Telling()
    faults = telling.faults

    def finish(rows: Sequence[Row], *, growth: bool = False) -> tuple[Results, list[Column]]:
        results = collect("train", machine, rows, notes=[f"shares: {FORMULA}"], faults=faults)
        columns = [*usual_columns(rows, per="step"), *train_columns(machine, rows)]
        if out is not None:
            write(Path(out), results, columns, growth=growth, machine=machine)
        return results, columns

    with telling.under_way() as stopped:
        machine = find_machine(device, threads=threads)
        telling.save = finish
        for index, step in enumerate(plan(jobs, growth, machine)):
            few = machine.device == "cuda" and index > 0
            rows += run_step(
                step,
                choose_systems(machine, peers=peers, few=few or growth),
                machine=machine,
                data=data,
                seconds=seconds,
                strict=strict,
                rounds=rounds,
                threads=threads,
                observe=telling.observe,
                found=telling.found,
                notes=faults,
            )
            machine = machine.at_best(find_machine(device, threads=threads))
    rows = list(telling.rows.values()) if stopped else rows
    results, columns = finish(rows, growth=growth and not stopped)
    show(results, columns, Console(stderr=json))
    if json:
        sys.stdout.write(results.to_json() + "\n")
    if stopped:
        raise KeyboardInterrupt
