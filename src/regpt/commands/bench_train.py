"""`regpt bench train`: the training step, ours and others'."""

from pathlib import Path


def bench_train(
    *,
    jobs: tuple[str, ...] = (),
    peers: bool = False,
    seconds: float = 180.0,
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
            out.
        rounds: At most so many rounds for each job.
        device: auto, cpu or cuda.
        threads: CPU threads; default: torch's choice.
        data: What to train on: pydocs, or UTF-8 text files.
        json: Print one JSON object, and the table on stderr.
        out: Write the table to this Markdown file, from the first row on.
    """
    from regpt.bench import train
    from regpt.bench.harness import Benchmark
    from regpt.system.runtime import find_device

    find_device(device)
    steps = [train.parse_job(name) for name in jobs]  # a wrong name is told before any measurement
    bench = Benchmark(
        name="train",
        seconds=seconds,
        rounds=rounds,
        columns=train.columns,
        definitions=[f"shares: {train.FORMULA}"],
        device=device,
        threads=threads,
        out=None if out is None else Path(out),
        json=json,
    )
    with bench.running():
        on_gpu = bench.machine.device == "cuda"
        usual = train.CUDA_JOBS if on_gpu else train.CPU_JOBS
        for index, step in enumerate(steps or map(train.parse_job, usual)):
            few = on_gpu and index > 0
            systems = train.choose_systems(bench.machine, peers=peers, few=few)
            train.run_step(bench, step, systems, data=data)
