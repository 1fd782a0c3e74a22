"""Named runs: functions that return a whole configuration. Flags change fields of what they return.

`regpt train PRESET --help` lists the fields; a variant in Python is `dataclasses.replace`.
"""

from collections.abc import Callable

from regpt.errors import UserError
from regpt.model import GPTConfig
from regpt.train.config import OptimizerConfig, RunConfig, ScheduleConfig

LECTURE_OPTIMIZER = OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.01, decay="all", clip=None)
"""torch's AdamW as the lecture calls it at this stage: only the learning rate is given."""


def quickstart() -> RunConfig:
    """A small GPT-2 that learns to write in a minute on two CPU cores."""
    return RunConfig(
        preset="quickstart",
        steps=250,
        batch_size=16,
        block_size=64,
        lr=3e-3,
        eval_every=125,
        validation_fraction=0.1,
        model=GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=256),
        optimizer=OptimizerConfig(name="muon", clip=None),
        schedule=ScheduleConfig(name="wsd", warmup_steps=10, decay_fraction=0.5),
    )


def lecture() -> RunConfig:
    """The lecture's first training: GPT-2 124M from random weights, B=4 T=32, 50 steps."""
    return RunConfig(preset="lecture", order="sequential", optimizer=LECTURE_OPTIMIZER)


def overfit() -> RunConfig:
    """The lecture's sanity check: the same, on one batch again and again."""
    return RunConfig(
        preset="overfit", order="sequential", optimizer=LECTURE_OPTIMIZER, overfit=True
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quickstart": quickstart,
    "lecture": lecture,
    "overfit": overfit,
}


def preset(name: str) -> RunConfig:
    """The configuration of a preset, by name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
