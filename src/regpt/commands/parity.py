"""`regpt parity`: compare with transformers on this machine, and say where and why it differs."""

import json as json_text
import sys
from collections.abc import Iterator

import torch
from rich.live import Live
from rich.table import Table

from regpt import __version__
from regpt.parity import Check, Comparison, Provocation, open_pairs, run
from regpt.parity.model_pair import need_transformers
from regpt.system.console import Console
from regpt.system.runtime import find_runtime

COLORS = {"agrees": "green", "differs": "bold red", "not checked": "yellow"}


def verdict(checks: list[Check]) -> str:
    """The last line: how many of what."""
    counts = {
        status: sum(check.status == status for check in checks)
        for status in ("agrees", "differs", "not checked")
    }
    line = f"{counts['agrees']} agree, {counts['differs']} differ"
    return f"{line}, {counts['not checked']} not checked"


def show(checks: Iterator[Check], console: Console) -> list[Check]:
    """Print the table, a row as soon as it is known; then what was compared, and differences."""
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "measured", "required"):
        table.add_column(heading, no_wrap=True)
    done = []
    with Live(table, console=console, vertical_overflow="visible"):
        for check in checks:
            done.append(check)
            status = f"[{COLORS[check.status]}]{check.status}[/]"
            table.add_row(check.name, status, check.figure, check.bound)
    console.print()
    for check in sorted(done, key=lambda check: check.status == "differs"):
        mark = "DIFFERS: " if check.status == "differs" else ""
        console.say(f"{mark}{check.name}: {check.detail}")
    console.say(f"\n{verdict(done)}")
    return done


def as_json(comparison: Comparison, checks: list[Check], place: str) -> str:
    """One object: what ran, and every check."""
    report = {
        "ok": not any(check.status == "differs" for check in checks),
        "model": comparison.model,
        "models": [pair.name for pair in comparison.pairs],
        "regpt": __version__,
        "transformers": need_transformers(),
        "torch": torch.__version__,
        "place": place,
        "checks": [check.to_json() for check in checks],
    }
    return json_text.dumps(report)


def parity(
    model: str = "random",
    /,
    *,
    seeds: int = 5,
    quick: bool = False,
    device: str = "cpu",
    provoke: Provocation | None = None,
    json: bool = False,
) -> None:
    """Compare with transformers: tokens, logits, loss, gradients, training steps, text.

    Ends with exit code 0 if all agrees that was checked, 1 if anything differs.

    Args:
        model: random (several shapes drawn here, offline), a directory, or a hub name such as gpt2.
        seeds: Random streams per model and kind of text.
        quick: Two seeds; of the random models the small ones only.
        device: Where both sides run: cpu, cuda, cuda:N or mps.
        provoke: Make one mistake on purpose, to see it found.
        json: Print one JSON object and nothing else.
    """
    runtime = find_runtime(device, dtype="fp32")
    console = Console()
    with open_pairs(model, device=runtime.device, small=quick) as comparison:
        checks = run(comparison, seeds=2 if quick else seeds, provoke=provoke)
        if json:
            done = list(checks)
            sys.stdout.write(as_json(comparison, done, runtime.describe()) + "\n")
        else:
            console.say(
                f"regpt {__version__} against transformers {need_transformers()}, torch "
                f"{torch.__version__}, {runtime.describe()}\nmodels: "
                f"{'; '.join(pair.name for pair in comparison.pairs)}\n"
            )
            done = show(checks, console)
    if any(check.status == "differs" for check in done):
        raise SystemExit(1)
