"""Named runs: functions that return a whole configuration. Flags change fields of what they return.

`regpt train PRESET --help` lists the fields; a variant in Python is `dataclasses.replace`.
"""

from collections.abc import Callable
from dataclasses import replace

from regpt.core.model import GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.system.errors import UserError
from regpt.training.config import RunConfig

LECTURE_OPTIMIZER = OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.01, decay="all", clip=None)
"""torch's AdamW as the lecture calls it at this stage: only the learning rate is given."""


def quickstart() -> RunConfig:
    """A small GPT-2 that learns to write in little more than a minute on two CPU cores."""
    return RunConfig(
        preset="quickstart",
        steps=550,
        batch_size=24,
        block_size=64,
        lr=5e-3,
        order="shifted",
        validation_fraction=0.1,
        quick_eval_every=50,
        model=GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=256),
        compact_vocabulary=True,
        zero_projections=True,
        optimizer=OptimizerConfig(
            name="muon",
            clip=None,
            epsilon=1e-10,
            weight_decay=0.5,
            muon_weight_decay=0.0,
        ),
        schedule=ScheduleConfig(name="wsd", warmup_steps=20, decay_fraction=0.5),
    )


def lecture() -> RunConfig:
    """The lecture's first training: GPT-2 124M from random weights, B=4 T=32, 50 steps."""
    return RunConfig(preset="lecture", order="sequential", optimizer=LECTURE_OPTIMIZER)


def overfit() -> RunConfig:
    """The lecture's sanity check: the same, on one batch again and again."""
    return replace(lecture(), preset="overfit", overfit=True)


VALIDATION_TOKENS = 10_485_760
"""20 batches of 64 x 1024 on each of 8 processes: what the lecture validates on."""

GPT3_WARMUP_STEPS = 715
"""375M tokens of 2^19: the warmup of every model in the GPT-3 paper (appendix B)."""


def gpt2_124m() -> RunConfig:
    """The lecture's full recipe: GPT-2 124M on 10B tokens of FineWeb-Edu."""
    return RunConfig(
        preset="gpt2-124m",
        data=("data/fineweb-edu",),
        steps=19_073,  # 10B tokens
        batch_size=64,
        batch_tokens=2**19,
        block_size=1024,
        lr=6e-4,
        eval_every=250,
        sample_every=250,
        save_every=1000,
        validation_tokens=VALIDATION_TOKENS,
        model=GPTConfig(),
        optimizer=OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.1, clip=1.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=GPT3_WARMUP_STEPS, floor=0.1),
    )


def gpt2_124m_fast() -> RunConfig:
    """The same model in fewer tokens: three times the rate, a plateau, Muon."""
    return replace(
        gpt2_124m(),
        preset="gpt2-124m-fast",
        steps=8_192,  # 4.3B tokens: docs/reproduce.md has the estimate
        lr=1.8e-3,
        optimizer=OptimizerConfig(name="muon", weight_decay=0.0, clip=1.0),
        schedule=ScheduleConfig(name="wsd", warmup_steps=256, decay_fraction=0.25),
    )


def gpt2_medium() -> RunConfig:
    """GPT-2 medium (355M) on 10B tokens, at the GPT-3 paper's rate for its size."""
    return replace(
        gpt2_124m(),
        preset="gpt2-medium",
        batch_size=32,
        lr=3e-4,  # GPT-3 paper, table 2.1: medium, 350M
        model=GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    )


def gpt2_large() -> RunConfig:
    """GPT-2 large (774M) on 16B tokens, at the GPT-3 paper's rate for its size."""
    return replace(
        gpt2_124m(),
        preset="gpt2-large",
        steps=30_518,
        batch_size=16,
        lr=2.5e-4,  # GPT-3 paper, table 2.1: large, 760M
        shard=True,
        model=GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    )


def gpt2_xl() -> RunConfig:
    """GPT-2 XL (1558M) on 33.6B tokens, a million at a time, as the GPT-3 paper has it."""
    return replace(
        gpt2_124m(),
        preset="gpt2-xl",
        steps=32_000,
        batch_size=8,
        batch_tokens=2**20,
        lr=2e-4,  # GPT-3 paper, table 2.1: XL, 1.3B, batch 1M tokens
        shard=True,
        model=GPTConfig(n_layer=48, n_head=25, n_embd=1600),
        schedule=ScheduleConfig(name="cosine", warmup_steps=358, floor=0.1),  # 375M tokens
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quickstart": quickstart,
    "lecture": lecture,
    "overfit": overfit,
    "gpt2-124m": gpt2_124m,
    "gpt2-124m-fast": gpt2_124m_fast,
    "gpt2-medium": gpt2_medium,
    "gpt2-large": gpt2_large,
    "gpt2-xl": gpt2_xl,
}


def preset(name: str) -> RunConfig:
    """The configuration of a preset, by name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
