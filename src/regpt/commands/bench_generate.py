"""`regpt bench generate`: how fast this machine writes, with ours and with others' programs."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from regpt.bench import generate
from regpt.bench.hardware_limits import find_machine
from regpt.bench.results import Results, collect, show, write_results
from regpt.bench.rows import Column, Row, usual_columns
from regpt.commands.benching import Telling, check_limits
from regpt.core.model import GPTConfig
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.weights import locate, read_config

SECONDS = 60.0


def bench_generate(
    model: str = "random",
    /,
    *,
    jobs: tuple[str, ...] = generate.JOBS,
    peers: bool = False,
    seconds: float | None = None,
    rounds: int = 7,
    threads: int | None = None,
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
        seconds: Time for the calls of one job, all systems together, and as much again for
            converting and loading the peers; what does not fit is left out. Default: about 60,
            and every system once.
        rounds: At most so many rounds.
        threads: CPU threads; default: each system's choice.
        out: Write a results file (Markdown) here, from the first row on.
        json: Print one JSON object, and the table on stderr.
    """
    check_limits(rounds, seconds, threads)
    for name in jobs:
        if name not in generate.JOBS:
            raise UserError(f"unknown job {name!r}: choose among {', '.join(generate.JOBS)}")
    if model != "random":
        model = str(locate(model))
    config = GPTConfig() if model == "random" else GPTConfig(**read_config(Path(model)))  # pyright: ignore[reportArgumentType]
    rows: Sequence[Row] = []
    telling = Telling()
    faults = telling.faults

    def finish(rows: Sequence[Row]) -> tuple[Results, list[Column]]:
        results = collect("generate", machine, rows, notes=[], faults=faults)
        columns = [*usual_columns(rows), *generate.generate_columns(config, machine, rows)]
        if out is not None:
            write_results(Path(out), results.to_markdown(columns))
        return results, columns

    with telling.under_way() as stopped:
        machine = find_machine(threads=threads)
        telling.save = finish
        observe = telling.observe
        deadline = None if seconds is None else time.monotonic() + seconds * len(jobs)
        with generate.prepared(
            model, peers=peers, observe=observe, faults=faults, deadline=deadline
        ) as systems:
            rows = generate.run(
                systems,
                jobs,
                seconds=SECONDS if seconds is None else seconds,
                strict=seconds is not None,
                rounds=rounds,
                threads=threads,
                deadline=deadline,
                observe=observe,
                found=telling.found,
                faults=faults,
            )
    results, columns = finish(list(telling.rows.values()) if stopped else rows)
    show(results, columns, Console(stderr=json))
    if json:
        sys.stdout.write(results.to_json() + "\n")
    if stopped:
        raise KeyboardInterrupt
