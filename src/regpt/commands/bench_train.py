"""`regpt bench train`: the training step, ours and others'."""

from pathlib import Path

from regpt.bench.interleaved import Budget
from regpt.bench.session import benchmark
from regpt.bench.train import (
    CPU_JOBS,
    CUDA_JOBS,
    FORMULA,
    choose_systems,
    judge,
    parse_job,
    run_step,
)
from regpt.system.runtime import find_device


def bench_train(
    *,
    jobs: tuple[str, ...] = (),
    peers: bool = False,
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
        peers: Time a plain loop as in the lecture and transformers too, in interleaved rounds.
        seconds: Time for the steps of one job, all systems together; what does not fit is left
            out. Default: about 90, and every system once.
        rounds: At most so many rounds for each job.
        device: auto, cpu or cuda.
        threads: CPU threads; default: torch's choice.
        data: What to train on: pydocs, or UTF-8 text files.
        json: Print one JSON object, and the table on stderr.
        out: Write the table to this Markdown file, from the first row on.
    """
    budget = Budget.asked(seconds, rounds, default=90.0)
    find_device(device)
    steps = [parse_job(name) for name in jobs]  # a wrong name is told before anything is measured
    with benchmark(
        "train",
        judge=judge,
        definitions=[f"shares: {FORMULA}"],
        device=device,
        threads=threads,
        out=None if out is None else Path(out),
        json=json,
    ) as session:
        on_gpu = session.machine.device == "cuda"
        for index, step in enumerate(
            steps or [parse_job(name) for name in (CUDA_JOBS if on_gpu else CPU_JOBS)]
        ):
            systems = choose_systems(session.machine, peers=peers, few=on_gpu and index > 0)
            run_step(session, step, systems, budget, data=data)
