"""How long training stands still for a checkpoint of GPT-2 124M, and what the write behind costs.

    python benchmarks/checkpoint_pause.py

Trains the 124M model from random weights on the lecture's batches (B=4, T=32) and saves every few
steps: the pause is the copy of 1.5 GB of parameters and optimizer state, and the wait for a save
that is still under way; the write goes on behind the next steps, which it slows down. For
comparison, the same checkpoint written in the foreground. Prints a table and one JSON line.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from regpt.bench.harness import Benchmark, Job
from regpt.bench.scripts import run_script, script_options
from regpt.bench.worker import System


def load(steps: int, save_every: int, data: str) -> Callable[[], dict[str, object]]:
    """A training with checkpoints; its parts are medians of what it timed."""
    from regpt.training.checkpoint import write_checkpoint
    from regpt.training.loop import train
    from regpt.training.presets import lecture
    from regpt.training.state import take_snapshot

    def call() -> dict[str, object]:
        seconds: dict[int, float] = {}
        pauses: dict[int, float] = {}

        def observe(entry: dict[str, Any]) -> None:
            if "loss" in entry:
                seconds[entry["step"]] = 128 / entry["tokens_per_second"]

        def say(text: str) -> None:
            if found := re.match(r"step +(\d+)  checkpoint, (\d+) ms pause", text):
                pauses[int(found[1])] = int(found[2]) / 1000

        with tempfile.TemporaryDirectory() as folder:
            config = replace(
                lecture(),
                data=(data,),
                out=f"{folder}/run",
                steps=steps,
                save_every=save_every,
                keep=1,
                sample_tokens=8,
            )
            state = train(config, observe, say)
            clock = time.perf_counter()
            snapshot = take_snapshot(state)
            copied = time.perf_counter()
            path = write_checkpoint(Path(folder) / "foreground", snapshot, keep=1)
            written = time.perf_counter()
            size = sum(file.stat().st_size for file in path.iterdir())
        regular = [step for step in pauses if step % save_every == 0]
        step = statistics.median(seconds[number] for number in range(4, save_every + 1))
        lost = [
            sum(seconds[saved + 1 + i] - step for i in range(save_every))
            for saved in regular
            if saved + save_every in seconds
        ]
        parts = {
            "a step, nothing being written": step,
            "pause": statistics.median(pauses[saved] for saved in regular),
            "the copy alone": copied - clock,
            "written in the foreground": written - copied,
        }
        if lost:
            parts["lost by the steps beside one write"] = statistics.median(lost)
        return {
            "parts": parts,
            "gigabytes": round(size / 1e9, 3),
            "pauses": [round(pauses[saved], 3) for saved in regular],
        }

    return call


def main() -> None:
    """Measure and print."""
    parser = script_options(__doc__, seconds=3600.0, rounds=1)
    parser.add_argument("--steps", type=int, default=33)
    parser.add_argument("--save-every", type=int, default=16)
    parser.add_argument("--data", default="pydocs")
    given = parser.parse_args()
    settings = {"steps": given.steps, "save_every": given.save_every, "data": given.data}
    system = System(name="regpt", load=f"{Path(__file__)}:load", settings=settings, ours=True)
    job = Job(name=f"{given.steps} steps", tokens=128 * given.steps)
    bench = Benchmark(
        name="checkpoint-pause", seconds=given.seconds, rounds=given.rounds,
        threads=given.threads, out=given.out, json=True,
    )  # fmt: skip
    with bench.running():
        bench.measure([system], job)


if __name__ == "__main__":
    run_script(main)
