"""What each part of the quickstart's recipe is worth: the recipe with one part taken away.

    python benchmarks/recipe.py --data pydocs --data tinyshakespeare.txt --steps 100

Every variant trains from the same seeds on the same windows, for fewer steps than the preset, and
is validated once, at its end. Prints a table for every text (validation loss in nats per token of
each seed, their mean, and the mean's difference from the whole recipe), and one JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from regpt.system.malloc import keep_pages

keep_pages()  # as the command line does, before torch is loaded

from regpt.core.schedule import ScheduleConfig  # noqa: E402
from regpt.training.config import RunConfig  # noqa: E402
from regpt.training.loop import train  # noqa: E402
from regpt.training.presets import quickstart  # noqa: E402

Change = Callable[[RunConfig], RunConfig]
VARIANTS: dict[str, Change] = {
    "the recipe": lambda config: config,
    "AdamW for all, rate 2e-3": lambda config: replace(
        config, lr=2e-3, optimizer=replace(config.optimizer, name="adamw")
    ),
    "a constant rate": lambda config: replace(config, schedule=ScheduleConfig()),
    "half the rate": lambda config: replace(config, lr=config.lr / 2),
    "projections not zero": lambda config: replace(config, zero_projections=False),
    "no weight decay": lambda config: replace(
        config, optimizer=replace(config.optimizer, weight_decay=0.0)
    ),
}


def loss_of(config: RunConfig) -> float:
    """Validation loss at the end of a run, nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        state = train(replace(config, out=str(Path(folder) / "run")))
    assert state.val_loss is not None
    return state.val_loss


def main() -> int:
    """Run every variant on every text with every seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for data in arguments.data:
        print(f"\n{Path(data).name}, {arguments.steps} steps, nats per token\n")
        print("| variant | " + " | ".join(f"seed {n}" for n in range(arguments.seeds)), end="")
        print(" | mean | difference |\n|---|" + "--:|" * (arguments.seeds + 2))
        whole = None
        for name, change in VARIANTS.items():
            losses = []
            for seed in range(arguments.seeds):
                base = replace(quickstart(), data=(data,), steps=arguments.steps, seed=seed)
                losses.append(loss_of(change(replace(base, prompts=()))))
            mean = statistics.mean(losses)
            whole = mean if whole is None else whole
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            print(f"| {name} | {cells} | {mean:.4f} | {mean - whole:+.4f} |", flush=True)
            rows.append({"data": Path(data).name, "variant": name, "losses": losses})
    print(json.dumps({"benchmark": "recipe", "steps": arguments.steps, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
