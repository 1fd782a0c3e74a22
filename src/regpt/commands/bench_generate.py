"""`regpt bench generate`: how fast this machine writes, with ours and with others' programs."""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from regpt.bench import generate
from regpt.bench.machine import find_machine
from regpt.bench.rows import (
    Baseline,
    Results,
    Row,
    faster_than,
    find_commit,
    table,
    today,
    usual_columns,
    wide_enough,
    write_results,
)
from regpt.errors import UserError
from regpt.model import GPTConfig
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
        json: Print one JSON object as the last line.
    """
    for name in jobs:
        if name not in generate.JOBS:
            raise UserError(f"unknown job {name!r}: choose among {', '.join(generate.JOBS)}")
    if model != "random":
        model = str(locate(model))
    config = GPTConfig() if model == "random" else GPTConfig(**read_config(Path(model)))  # pyright: ignore[reportArgumentType]
    console = Console(stderr=True)
    faults: list[str] = []
    with console.status("measuring the machine") as status:
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
    report(
        rows,
        Results(
            benchmark="generate",
            rows=rows,
            machine=machine.to_json(),
            place=f"{machine.describe()}; {machine.describe_limits()}",
            date=today(),
            commit=find_commit(),
            command=shlex.join(["regpt", *sys.argv[1:]]),
            notes=faults,
        ),
        config,
        machine.read_bytes_per_second,
        out=out,
        json=json,
    )


def report(
    rows: list[Row],
    results: Results,
    config: GPTConfig,
    read_bytes_per_second: float | None,
    *,
    out: str | None,
    json: bool,
) -> None:
    """Print the table and the notes; write the file; print the line."""
    columns = usual_columns(rows)
    names = [(row.system, row.dtype) for row in rows]
    for system, dtype in (("lecture-loop", "fp32"), ("ctranslate2", "fp32")):
        if (system, dtype) in names:
            columns.append(faster_than(Baseline(system=system, dtype=dtype), rows))
    columns.append(generate.bandwidth_share(config, read_bytes_per_second))
    drawn = table(rows, columns)
    console = wide_enough(Console(stderr=json), drawn)
    console.print(results.place, highlight=False, soft_wrap=True)
    console.print(drawn)
    for note in results.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if out:
        write_results(Path(out), results.to_markdown(columns))
    if json:
        sys.stdout.write(results.to_json() + "\n")
