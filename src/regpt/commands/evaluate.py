"""`regpt evaluate`: losses and accuracies that compare."""

from functools import partial
from pathlib import Path
from typing import Literal

from regpt.system.errors import UserError
from regpt.system.json_text import json_line

BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}


def evaluate(
    model: str,
    /,
    *,
    data: tuple[str, ...] = (),
    validation_fraction: float = 0.0,
    block_size: int | None = None,
    stride: int | None = None,
    documents: bool = False,
    hellaswag: tuple[str, ...] | None = None,
    scoring: Literal["lecture", "harness", "both"] = "both",
    lambada: str | None = None,
    limit: int | None = None,
    details: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    json: bool = False,
) -> None:
    """Score a model on a text, HellaSwag or LAMBADA.

    Under torchrun the work is shared out; the figures stay the same.

    Args:
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        data: A text: shakespeare, pydocs, files (.txt, .jsonl, .bin), or a folder of them.
        validation_fraction: Score only the last part of the text's characters, as in training.
        block_size: Tokens of context at most; default: what the model can read.
        stride: Tokens from one window to the next; default: block_size, no overlap.
        documents: No context across end-of-text.
        hellaswag: A copy of hellaswag_val.jsonl; without one it is downloaded once and verified.
        scoring: Rules for HellaSwag: the lecture's, those of lm-eval's harness, or both.
        lambada: A file of {"text": ...} lines: how often the last word is the likeliest.
        limit: Score so many examples of HellaSwag and LAMBADA only.
        details: A folder for the results of every example, as JSON lines.
        batch_size: Sequences read at once; default: what suits the machine.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
        dtype: Compute dtype: fp32 (exact), bf16, or auto.
        json: Print one JSON object as the last line.
    """
    if not data and hellaswag is None and lambada is None:
        raise UserError("nothing to score: give --data TEXT, --hellaswag or --lambada FILE")
    if hellaswag is not None and len(hellaswag) > 1:
        raise UserError(f"--hellaswag takes one file, got {len(hellaswag)}")
    for name, value in (("limit", limit), ("batch-size", batch_size), ("block-size", block_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    from regpt.commands.models import load_model
    from regpt.datasets.corpus import silent
    from regpt.evaluation.hellaswag import SCORINGS
    from regpt.evaluation.suite import Suite
    from regpt.system.distributed import open_world
    from regpt.system.runtime import find_runtime

    runtime = find_runtime(device, dtype=dtype)
    with open_world(runtime) as world:
        gpt = load_model(model, seed=1337).to(runtime.device)
        context = block_size or gpt.config.block_size
        if context > gpt.config.block_size:
            raise UserError(
                f"--block-size {context} is above the model's {gpt.config.block_size} positions"
            )
        suite = Suite(
            model=gpt, runtime=runtime, world=world, details=Path(details) if details else None,
            batch_tokens=batch_size * context if batch_size else BATCH_TOKENS[runtime.device.type],
            say=partial(print, flush=True) if world.is_first else silent,
        )  # fmt: skip
        suite.say(f"model      {model}, {gpt.num_parameters():,} parameters, {runtime.describe()}")
        if data:
            suite.score_text(
                data, fraction=validation_fraction, block_size=context, stride=stride,
                documents=documents,
            )  # fmt: skip
        if hellaswag is not None:
            scorings = SCORINGS if scoring == "both" else (scoring,)
            suite.score_hellaswag(Path(*hellaswag) if hellaswag else None, scorings, limit=limit)
        if lambada is not None:
            suite.score_lambada(Path(lambada), limit=limit)
        if json:
            suite.say(json_line({"model": model, "dtype": runtime.dtype_name, **suite.found})[:-1])
