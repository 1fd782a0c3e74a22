"""How long training stands still for a checkpoint of GPT-2 124M, and what the write behind costs.

    python benchmarks/checkpoint_pause.py

Trains the 124M model from random weights on the lecture's batches (B=4, T=32) and saves every few
steps: the pause is the copy of 1.5 GB of parameters and optimizer state, and the wait for a save
that is still under way; the write goes on behind the next steps, which it slows down. For
comparison, the same checkpoint written in the foreground. Prints a table and one JSON line.
"""

from regpt.system.malloc import keep_pages

keep_pages()  # as the command line does, before torch is loaded

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

from regpt.training.checkpoint import write_checkpoint  # noqa: E402
from regpt.training.events import Event, Saved, Stepped  # noqa: E402
from regpt.training.loop import train  # noqa: E402
from regpt.training.presets import lecture  # noqa: E402
from regpt.training.state import take_snapshot  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=33)
    parser.add_argument("--save-every", type=int, default=16)
    parser.add_argument("--data", default="pydocs")
    options = parser.parse_args()
    seconds: dict[int, float] = {}
    pauses: dict[int, float] = {}

    def observe(event: Event) -> None:
        if isinstance(event, Stepped):
            seconds[event.step] = 128 / event.tokens_per_second
        elif isinstance(event, Saved):
            pauses[event.step] = event.seconds

    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            lecture(),
            data=(options.data,),
            out=f"{folder}/run",
            steps=options.steps,
            save_every=options.save_every,
            keep=1,
            sample_tokens=8,
        )
        state = train(config, observe)
        clock = time.perf_counter()
        snapshot = take_snapshot(state)
        copy = time.perf_counter() - clock
        clock = time.perf_counter()
        path = write_checkpoint(Path(folder) / "foreground", snapshot, keep=1)
        write = time.perf_counter() - clock
        size = sum(file.stat().st_size for file in path.iterdir())
        place = state.runtime.describe()
    regular = [step for step in pauses if step % options.save_every == 0]
    quiet = [time for step, time in seconds.items() if 3 < step <= options.save_every]
    normal = statistics.median(quiet)
    extra = [
        sum(seconds[step + 1 + i] - normal for i in range(options.save_every))
        for step in regular
        if step + options.save_every in seconds
    ]
    figures = {
        "benchmark": "checkpoint_pause",
        "place": place,
        "gigabytes": round(size / 1e9, 3),
        "step_seconds": round(normal, 3),
        "pause_seconds": [round(pauses[step], 3) for step in regular],
        "lost_to_the_write_behind": [round(value, 2) for value in extra],
        "copy_seconds": round(copy, 3),
        "foreground_write_seconds": round(write, 3),
    }
    for name, value in figures.items():
        sys.stdout.write(f"{name:<28} {value}\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
