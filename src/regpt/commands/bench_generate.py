"""`regpt bench generate`: how fast this machine writes, with ours and with others' programs."""

import sys
from pathlib import Path

from rich.console import Console

from regpt.bench import generate
from regpt.bench.hardware_limits import find_machine
from regpt.bench.results import collect, show, write_results
from regpt.bench.rows import usual_columns
from regpt.core.model import GPTConfig
from regpt.system.errors import UserError
from regpt.weights import locate, read_config


def bench_generate(
    model: str = "random",
    /,
    *,
    jobs: tuple[str, ...] = generate.JOBS,
    peers: bool = False,
    seconds: float = 60.0,
    rounds: int = 7,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Time writing: five samples of 30 tokens, one stream of 248, five of 248.

    Every system lives in a process of its own, with the same exported weights; rounds alternate
    between them, and a row is the median of its rounds.

    Args:
        model: random (an untrained 124M), a run or Hugging Face directory, or a hub name.
        jobs: Which of lecture-5x30, stream-248, batch-5x248.
        peers: Also time the lecture's loop and, where installed, transformers, CTranslate2 and
            llama-cpp-python.
        seconds: About how long the rounds of one job may take.
        rounds: At most so many rounds.
        out: Write a results file (Markdown) here.
        json: Print one JSON object, and the table on stderr.
    """
    if rounds < 1 or not 0 <= seconds < float("inf"):
        raise UserError(f"rounds must be at least 1 and seconds not negative: {rounds}, {seconds}")
    for name in jobs:
        if name not in generate.JOBS:
            raise UserError(f"unknown job {name!r}: choose among {', '.join(generate.JOBS)}")
    if model != "random":
        model = str(locate(model))
    config = GPTConfig() if model == "random" else GPTConfig(**read_config(Path(model)))  # pyright: ignore[reportArgumentType]
    faults: list[str] = []
    with Console(stderr=True).status("measuring the machine") as status:
        machine = find_machine()
        with generate.prepared(model, peers=peers, observe=status.update, faults=faults) as systems:
            rows = generate.run(
                systems,
                jobs,
                seconds=seconds,
                rounds=rounds,
                observe=status.update,
                faults=faults,
            )
    results = collect("generate", machine, rows, notes=[], faults=faults)
    columns = [*usual_columns(rows), *generate.generate_columns(config, machine, rows)]
    if out is not None:
        write_results(Path(out), results.to_markdown(columns))
    show(results, columns, Console(stderr=json))
    if json:
        sys.stdout.write(results.to_json() + "\n")
