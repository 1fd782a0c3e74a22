"""`regpt bench generate`: how fast this machine writes, with ours and with others' programs."""

from functools import partial
from pathlib import Path

from regpt.system.errors import UserError


def bench_generate(
    model: str = "random",
    /,
    *,
    jobs: tuple[str, ...] = ("lecture-5x30", "stream-248", "batch-5x248"),
    peers: bool = False,
    seconds: float = 60.0,
    rounds: int = 7,
    threads: int | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Time writing: five samples of 30 tokens, one stream of 248, five of 248.

    Every system lives in a process of its own, with the same exported weights; rounds are
    interleaved, and a row is the median of its rounds.

    Args:
        model: random (an untrained 124M), a run or Hugging Face directory, or a hub name.
        jobs: Which of lecture-5x30, stream-248, batch-5x248.
        peers: Also time the lecture's loop and, where installed, transformers, CTranslate2 and
            llama-cpp-python.
        seconds: Time for the calls of one job, all systems together, and as much again for
            converting and loading the peers; what does not fit is left out.
        rounds: At most so many rounds.
        threads: CPU threads; default: each system's choice.
        out: Write a results file (Markdown) here, from the first row on.
        json: Print one JSON object, and the table on stderr.
    """
    from regpt.bench import generate
    from regpt.bench.harness import Benchmark
    from regpt.core.model import GPTConfig
    from regpt.weights import locate, read_config

    for name in jobs:
        if name not in generate.JOBS:
            raise UserError(f"unknown job {name!r}: choose among {', '.join(generate.JOBS)}")
    if model != "random":
        model = str(locate(model))
    config = GPTConfig() if model == "random" else GPTConfig(**read_config(Path(model)))  # pyright: ignore[reportArgumentType]
    bench = Benchmark(
        name="generate",
        seconds=seconds,
        rounds=rounds,
        columns=partial(generate.columns, config),
        threads=threads,
        out=None if out is None else Path(out),
        json=json,
    )
    with bench.running():
        generate.run(bench, model, jobs, peers=peers)
