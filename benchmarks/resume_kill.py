"""Runs that are SIGKILLed at random moments, each resumed to its end, against one never touched.

    python benchmarks/resume_kill.py --runs 20

Every run is killed up to --kills times: half of the kills at a random time, half as soon as a save
is under way (a hidden checkpoint directory is there), after a random part of it. Before every
resume all checkpoints are verified here, apart from the run, and the one that the run then says it
resumed from must be the newest sound one. At the end the losses and the weights must be those of
the unbroken run, bit for bit. Prints a table and one JSON line; exit code 1 if anything differs.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regpt import GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.training.checkpoint import verify
from regpt.training.config import RunConfig
from regpt.training.loop import train

STEPS = 30
SENTENCE = "the cat saw a dog and the dog saw a bird while it rained on old green hills. "


def configuration(text: Path, out: Path) -> RunConfig:
    """Muon, cosine, dropout, validation, a checkpoint every fourth step: all that has a state."""
    return RunConfig(
        data=(str(text),),
        out=str(out),
        steps=STEPS,
        batch_size=2,
        batch_tokens=128,
        block_size=16,
        lr=3e-3,
        save_every=4,
        eval_every=7,
        threads=1,
        device="cpu",
        dtype="fp32",
        validation_fraction=0.1,
        model=GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=48, dropout=0.1),
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(name="cosine", warmup_steps=3),
    )


def keep_note(path: Path, text: str) -> None:
    """Write down what the run notes."""
    if text.startswith("note: "):
        with path.open("a") as file:
            file.write(text + "\n")


def run(config: RunConfig, notes: Path, resume: bool) -> None:
    """The process that is killed."""
    train(config, say=partial(keep_note, notes), resume=resume)


def losses(out: Path) -> list[tuple[int, float]]:
    """Step and loss of every training line."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def weights_of(out: Path) -> str:
    """sha256 of the final model."""
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def newest_sound(out: Path) -> str | None:
    """The newest checkpoint whose digests are right, found without the run's help."""
    names = sorted((path.name for path in (out / "checkpoints").glob("step-*")), reverse=True)
    return next((name for name in names if verify(out / "checkpoints" / name) is None), None)


def half_written(out: Path) -> set[str]:
    """Checkpoints that are being written, or were when the run was killed."""
    return {path.name for path in (out / "checkpoints").glob(".step-*.tmp")}


def kill_somewhere(
    process: Any, out: Path, leftovers: set[str], moments: random.Random
) -> tuple[bool, bool]:
    """Kill a run once it computes; (whether it was alive, whether it was saving)."""
    metrics = out / "metrics.jsonl"
    seen = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.is_alive() and not (metrics.exists() and metrics.stat().st_mtime_ns > seen):
        time.sleep(0.001)
    if moments.random() < 0.5:
        time.sleep(moments.uniform(0.0, 1.0))
    else:
        time.sleep(moments.uniform(0.0, 0.3))
        while process.is_alive() and not half_written(out) - leftovers:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0.0, 0.05))
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive and process.exitcode == -9, bool(half_written(out) - leftovers)


def break_and_resume(
    config: RunConfig, notes: Path, kills: int, moments: random.Random, context: Any
) -> dict[str, Any]:
    """One run, killed and resumed to its end; what happened."""
    assert config.out is not None
    out = Path(config.out)
    result = {"kills": 0, "during_saves": 0, "wrong_checkpoints": 0, "resumed_from": []}
    for attempt in range(kills + 1):
        resume = (out / "run.json").exists()
        expected = newest_sound(out) if resume else None
        notes.write_text("")
        leftovers = half_written(out)  # of earlier kills
        process = context.Process(target=run, args=(config, notes, resume))
        process.start()
        if attempt < kills:
            killed, saving = kill_somewhere(process, out, leftovers, moments)
            result["kills"] += killed
            result["during_saves"] += killed and saving
        process.join()
        loaded = [line for line in notes.read_text().splitlines() if "resumed after" in line]
        result["resumed_from"] += [expected] if loaded else []
        if loaded and not (expected and loaded[0].endswith(expected)):
            result["wrong_checkpoints"] += 1
        if process.exitcode == 0:
            break
    return result | {"exit_code": process.exitcode}


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=4, help="at most so many per run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["regpt.training.loop", "torch"])
    moments = random.Random(options.seed)
    sys.stdout.write(f"{'run':>4} {'kills':>6} {'in saves':>9} {'losses':>8} {'weights':>8}\n")
    faults, kills, during_saves = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(SENTENCE * 300)
        notes = Path(folder) / "notes"
        config = configuration(text, Path(folder) / "whole")
        whole = context.Process(target=run, args=(config, notes, False))
        whole.start()
        whole.join()
        expected, digest = losses(Path(folder) / "whole"), weights_of(Path(folder) / "whole")
        assert [step for step, _ in expected] == list(range(1, STEPS + 1))
        for number in range(1, options.runs + 1):
            out = Path(folder) / f"run-{number}"
            result = break_and_resume(
                replace(config, out=str(out)), notes, options.kills, moments, context
            )
            same = result["exit_code"] == 0 and losses(out) == expected
            same_weights = result["exit_code"] == 0 and weights_of(out) == digest
            faults += (not same) + (not same_weights) + result["wrong_checkpoints"]
            kills += result["kills"]
            during_saves += result["during_saves"]
            words = {True: "equal", False: "DIFFER"}
            sys.stdout.write(
                f"{number:>4} {result['kills']:>6} {result['during_saves']:>9} "
                f"{words[same]:>8} {words[same_weights]:>8}\n"
            )
            sys.stdout.flush()
    summary = {
        "benchmark": "resume_kill",
        "runs": options.runs,
        "kills": kills,
        "during_saves": during_saves,
        "faults": faults,
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
