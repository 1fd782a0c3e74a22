"""What the tests of runs share: a configuration of a few seconds, and reading its losses."""

import json
from dataclasses import replace
from pathlib import Path

from regpt import GPTConfig
from regpt.training.config import RunConfig

TINY = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)


def tiny(text: Path, out: Path, **changes: object) -> RunConfig:
    """A run of six steps."""
    return replace(
        RunConfig(
            data=(str(text),),
            out=str(out),
            steps=6,
            batch_size=4,
            block_size=16,
            lr=1e-2,
            device="cpu",
            dtype="fp32",
            validation_fraction=0.02,
            model=TINY,
        ),
        **changes,
    )


def forget_the_end(out: Path) -> None:
    """As if the run had been killed before it recorded that it came to its end."""
    record = json.loads((out / "run.json").read_text())
    del record["finished"]
    (out / "run.json").write_text(json.dumps(record))


def notes(said: list[str]) -> list[str]:
    """What a run noted, among all it said."""
    return [text.removeprefix("note: ") for text in said if text.startswith("note: ")]


def losses(out: Path) -> list[float]:
    """The training losses of a run, in the order they were recorded."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def steps(out: Path) -> list[int]:
    """The steps those losses stand for."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]
