"""Periodic evaluation during training: validation loss, HellaSwag, samples.

Evaluation changes nothing: it draws from no random stream of the training, restores the model's
mode, and runs compiled blocks uncompiled where it reads texts of many lengths, each of which would
be compiled anew. Losses with and without are bit-equal, tested.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regpt.core.generate import complete, generate_steps
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
from regpt.evaluation import hellaswag
from regpt.evaluation.scoring import score_windows
from regpt.evaluation.validation import BATCH_TOKENS, validate
from regpt.evaluation.windows import cut_windows
from regpt.fast.decoding.topk_sampling import sample
from regpt.system.distributed import World
from regpt.training.build import decide_compile
from regpt.training.config import RunConfig
from regpt.training.state import TrainState

Entry = dict[str, Any]
"""A line of metrics.jsonl."""
DOWNLOAD = "download"
"""Instead of a file: the published one, fetched once."""
QUICK_TOKENS = 1024
"""Held-out tokens of a quick validation."""
SAMPLES = 2
"""Continuations of each prompt."""


class PeriodicEvaluation:
    """What a run evaluates, and when; a file that cannot be read fails before the run begins."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config = config
        self.examples: list[hellaswag.Example] = []
        self.num_published = 0
        """Examples in the file; `examples` are spread over it."""
        if config.hellaswag is not None:
            examples = hellaswag.read_examples(find_examples(config.hellaswag, world))
            self.num_published = len(examples)
            self.examples = hellaswag.spread(examples, config.hellaswag_examples)

    def before_training(self, state: TrainState) -> Iterator[Entry]:
        """What the untrained model writes; a resumed run has it already."""
        if state.step == 0:
            yield from write_samples(state)

    def after_step(self, state: TrainState) -> Iterator[Entry]:
        """Whatever is due now that the step is counted; after the last step everything is."""
        config, last = self.config, state.step == self.config.steps

        def due(every: int | None) -> bool:
            return every is not None and state.step % every == 0

        # every checkpoint is validated too: "best" is then a choice among all of them
        saving = config.eval_every is not None and due(config.save_every)
        if last or saving or due(config.eval_every):
            yield from score_validation(state)
        if due(config.quick_eval_every):
            yield from score_quick_validation(state)
        if self.examples and (last or due(config.hellaswag_every)):
            yield score_hellaswag(state, self.examples)
        if last or due(config.sample_every):
            yield from write_samples(state)


def find_examples(named: str, world: World) -> Path:
    """HellaSwag's file; a download is the first process's work."""
    if named != DOWNLOAD:
        return Path(named)
    if world.is_first:
        hellaswag.fetch()
    world.barrier()
    return hellaswag.fetch()


@contextlib.contextmanager
def uncompiled(state: TrainState) -> Iterator[None]:
    """Within, compiled blocks run uncompiled."""
    if not decide_compile(state.config, state.runtime.device)[0]:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def batch_tokens(config: RunConfig) -> int:
    """Tokens per forward pass: a training micro-batch, which fits for certain, or a few more."""
    return max(config.batch_size * config.block_size, BATCH_TOKENS)


def evaluation_world(state: TrainState) -> World:
    """The processes that share the work: all, but with a sharded model, whose forward takes all at
    once, each does everything."""
    return World(device=state.world.device) if state.config.shard else state.world


def score_validation(state: TrainState) -> Iterator[Entry]:
    """Score the validation text, if there is one."""
    if state.data.validation is None:
        return
    result = validate(
        state.whole_model(),
        state.data.validation,
        state.runtime,
        block_size=state.config.block_size,
        batch_tokens=batch_tokens(state.config),
        world=evaluation_world(state),
    )
    state.val_loss, state.val_step = result.loss, state.step
    yield {
        "step": state.step,
        "val_loss": result.loss,
        "val_bits_per_byte": result.bits_per_byte,
        "val_nats_per_character": result.nats_per_character,
        "val_tokens": result.tokens,
    }


def score_quick_validation(state: TrainState) -> Iterator[Entry]:
    """Score the same few windows each time, from all over the validation text.

    The keys are not the whole text's, so that neither "best" nor a comparison of runs takes one
    figure for the other.
    """
    if state.data.validation is None:
        return
    block_size = state.config.block_size
    windows = cut_windows(state.data.validation, block_size=block_size)
    windows = windows.spread(max(QUICK_TOKENS // block_size, 1))
    nll, _ = score_windows(
        state.whole_model(),
        state.data.validation,
        windows,
        state.runtime,
        batch_tokens=batch_tokens(state.config),
        world=evaluation_world(state),
    )
    yield {
        "step": state.step,
        "quick_val_loss": nll.sum().item() / windows.targets,
        "quick_val_tokens": windows.targets,
    }


def score_hellaswag(state: TrainState, examples: list[hellaswag.Example]) -> Entry:
    """Score the examples by the lecture's rules, in float32."""
    runtime = replace(state.runtime, dtype=torch.float32)
    model = state.whole_model()
    with uncompiled(state):
        answers = hellaswag.answer_all(
            model,
            examples,
            runtime,
            scoring="lecture",
            batch_tokens=batch_tokens(state.config),
            world=evaluation_world(state),
        )
    acc, acc_norm = hellaswag.accuracies(answers)
    return {
        "step": state.step,
        "hellaswag_acc": acc.value,
        "hellaswag_acc_norm": acc_norm.value,
        "hellaswag_acc_norm_stderr": acc_norm.stderr,
        "hellaswag_examples": len(examples),
        "hellaswag_scoring": "lecture",
    }


def write_samples(state: TrainState) -> Iterator[Entry]:
    """Let the model continue the prompts; the random stream is its own, and the same each time."""
    config = state.config
    if not config.prompts or not (state.world.is_first or config.shard):
        return
    model, tokenizer = state.whole_model(), get_tokenizer()
    positions = config.model.block_size
    samples = {}
    for prompt in config.prompts:
        ids = tokenizer.encode(prompt)[: max(positions // 2, 1)]
        length = min(max(config.sample_tokens, len(ids)), positions)
        params = SamplingParams(max_length=length, num_samples=SAMPLES)
        generate = partial(generate_steps, sampler=sample)
        with state.runtime.autocast(), uncompiled(state):
            rows = complete(model, ids, params, generate=generate)
            samples[prompt] = [tokenizer.decode(row) for row in rows]
    yield {"step": state.step, "samples": samples}
