"""`regpt parity`: compare with transformers on this machine, and say where and why it differs."""

import sys
from dataclasses import asdict

from regpt import __version__
from regpt.system.console import Console
from regpt.system.json_text import json_line


def parity(
    model: str = "random",
    /,
    *,
    seeds: int = 5,
    quick: bool = False,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Compare with transformers: tokens, logits, loss, gradients, training steps, text.

    Ends with exit code 0 if all agrees that was checked, 1 if anything differs.

    Args:
        model: random (several shapes drawn here, offline), a directory, or a hub name such as gpt2.
        seeds: Random streams per model and kind of text.
        quick: Two seeds; of the random models the small ones only.
        device: Where both sides run: cpu, cuda, cuda:N or mps.
        json: Print one JSON object and nothing else.
    """
    import torch

    from regpt.parity import open_pairs, run
    from regpt.parity.model_pair import need_transformers
    from regpt.system.runtime import find_runtime

    runtime = find_runtime(device, dtype="fp32")
    versions = {
        "regpt": __version__, "transformers": need_transformers(), "torch": torch.__version__
    }  # fmt: skip
    say = Console(stderr=json).say
    done = []
    with open_pairs(model, device=runtime.device, small=quick) as comparison:
        names = [pair.name for pair in comparison.pairs]
        if not json:
            told = ", ".join(f"{name} {version}" for name, version in versions.items())
            say(f"{told}, {runtime.describe()}\nmodels: {'; '.join(names)}\n")
            say(f"{'check':<24}{'':<13}{'measured':>16}  required")
        for check in run(comparison, seeds=2 if quick else seeds):
            done.append(check)
            if not json:
                say(f"{check.name:<24}{check.status:<13}{check.figure:>16}  {check.bound}")
    counts = {
        status: sum(check.status == status for check in done)
        for status in ("agrees", "differs", "not checked")
    }
    if json:
        facts = {"ok": not counts["differs"], "model": model, "models": names, **versions}
        checks = [asdict(check) for check in done]
        report = {**facts, "place": runtime.describe(), "checks": checks}
        sys.stdout.write(json_line(report))
    else:
        say()
        for check in sorted(done, key=lambda check: check.status == "differs"):
            say(f"{'DIFFERS: ' * (check.status == 'differs')}{check.name}: {check.detail}")
        agree, differ, unchecked = counts.values()
        say(f"\n{agree} agree, {differ} differ, {unchecked} not checked")
    if counts["differs"]:
        raise SystemExit(1)
