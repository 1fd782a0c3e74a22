"""What is looked at while a run goes on: validation, HellaSwag and samples, each when it is due.

A look changes nothing: it draws from no random stream of the training, restores the model's mode,
and leaves the compiled step alone. (Samples and HellaSwag read texts of many lengths; compiled
blocks would be compiled again for each, and before the first step even for shapes that vary, so
these two run the blocks as they are written.) Losses with and without are bit-equal, tested.

Figures go to metrics.jsonl as lines of their own, so a resumed run forgets them with the steps.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from regpt.core.generate import complete, generate_steps
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
from regpt.evaluation import hellaswag as swag
from regpt.evaluation.validation import BATCH_TOKENS, score_windows, validate
from regpt.evaluation.windows import cut_windows
from regpt.fast.decoding.topk_sampling import sample
from regpt.system.distributed import World
from regpt.training.compiling import compiles
from regpt.training.config import RunConfig
from regpt.training.events import Answered, Observer, Sample, Sampled, Validated, ValidatedQuickly
from regpt.training.run_dir import RunDirectory
from regpt.training.state import TrainState

DOWNLOAD = "download"
"""Instead of a file: the published one, fetched once."""
QUICK_TOKENS = 1024
"""Held-out tokens of a quick validation."""
SAMPLES = 2
"""Continuations of each prompt."""


class Looks:
    """The looks of a run and their schedule; a file that cannot be read fails before it begins."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config = config
        self.examples: list[swag.Example] = []
        self.examples_in_all = 0
        if config.hellaswag is not None:
            examples = swag.read_examples(find_file(config.hellaswag, world))
            self.examples_in_all = len(examples)
            self.examples = swag.spread(examples, config.hellaswag_examples)

    def before_training(
        self, state: TrainState, directory: RunDirectory, observe: Observer
    ) -> None:
        """What the untrained model writes; a resumed run has it already."""
        if state.step == 0:
            write_samples(state, directory, observe)

    def after_step(self, state: TrainState, directory: RunDirectory, observe: Observer) -> None:
        """Whatever is due now that the step is counted; at the end everything is."""
        config, last = self.config, state.step == self.config.steps

        def due(every: int | None) -> bool:
            return every is not None and state.step % every == 0

        # every checkpoint is validated too: "best" is then a choice among all of them
        saving = config.eval_every is not None and due(config.save_every)
        if last or saving or due(config.eval_every):
            write_validation(state, directory, observe)
        if due(config.quick_eval_every):
            write_quick_validation(state, directory, observe)
        if self.examples and (last or due(config.hellaswag_every)):
            write_hellaswag(state, self.examples, directory, observe)
        if last or due(config.sample_every):
            write_samples(state, directory, observe)


def find_file(named: str, world: World) -> Path:
    """The examples' file; a download is the first process's work."""
    if named != DOWNLOAD:
        return Path(named)
    if world.is_first:
        swag.fetch()
    world.barrier()
    return swag.fetch()


@contextlib.contextmanager
def as_written(state: TrainState) -> Iterator[None]:
    """Within, compiled blocks run uncompiled."""
    if not compiles(state.config, state.runtime.device):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def batch_tokens(config: RunConfig) -> int:
    """Tokens read at once: a training micro-batch, which fits for certain, or a few more."""
    return max(config.batch_size * config.block_size, BATCH_TOKENS)


def sharing(state: TrainState) -> World:
    """The processes that share work out: all, but with a sharded model, whose forward takes all at
    once, each does everything."""
    return World(device=state.world.device) if state.config.shard else state.world


def write_validation(state: TrainState, directory: RunDirectory, observe: Observer) -> None:
    """Score the validation text, if there is one, and write its line."""
    validation = state.data.validation
    if validation is None:
        return
    result = validate(
        state.whole_model(),
        validation,
        state.runtime,
        block_size=state.config.block_size,
        batch_tokens=batch_tokens(state.config),
        world=sharing(state),
    )
    state.val_loss, state.val_step = result.loss, state.step
    entry = {
        "step": state.step,
        "val_loss": result.loss,
        "val_bits_per_byte": result.bits_per_byte,
        "val_nats_per_character": result.nats_per_character,
        "val_tokens": result.tokens,
    }
    if state.world.is_first:
        directory.append_metrics(entry)
    observe(Validated(step=state.step, result=result))


def write_quick_validation(state: TrainState, directory: RunDirectory, observe: Observer) -> None:
    """Score the same few windows each time, from all over the validation text; write the line.

    Its name is another than the whole text's, so that neither "the best" nor a comparison of runs
    takes one figure for the other.
    """
    validation = state.data.validation
    if validation is None:
        return
    block_size = state.config.block_size
    windows = cut_windows(validation, block_size=block_size)
    windows = windows.spread(max(QUICK_TOKENS // block_size, 1))
    nats = score_windows(
        state.whole_model(),
        validation,
        windows,
        state.runtime,
        batch_tokens=batch_tokens(state.config),
        world=sharing(state),
    )
    loss = nats / windows.targets
    if state.world.is_first:
        entry = {"step": state.step, "quick_val_loss": loss, "quick_val_tokens": windows.targets}
        directory.append_metrics(entry)
    observe(ValidatedQuickly(step=state.step, loss=loss))


def write_hellaswag(
    state: TrainState, examples: list[swag.Example], directory: RunDirectory, observe: Observer
) -> None:
    """Score the examples by the lecture's rules, in float32, and write the line."""
    runtime = replace(state.runtime, dtype=torch.float32)
    model = state.whole_model()
    with as_written(state):
        answers = swag.answer_all(
            model,
            examples,
            runtime,
            scoring="lecture",
            batch_tokens=batch_tokens(state.config),
            world=sharing(state),
        )
    acc, norm = swag.accuracies(answers)
    entry = {
        "step": state.step,
        "hellaswag_acc": acc.value,
        "hellaswag_acc_norm": norm.value,
        "hellaswag_acc_norm_stderr": norm.stderr,
        "hellaswag_examples": len(examples),
        "hellaswag_scoring": "lecture",
    }
    if state.world.is_first:
        directory.append_metrics(entry)
    observe(Answered(step=state.step, acc=acc, acc_norm=norm, examples=len(examples)))


def write_samples(state: TrainState, directory: RunDirectory, observe: Observer) -> None:
    """Let the model continue the prompts; the random stream is its own, and the same each time."""
    config = state.config
    if not config.prompts or not (state.world.is_first or config.shard):
        return
    model, tokenizer = state.whole_model(), get_tokenizer()
    positions = config.model.block_size
    samples = []
    for prompt in config.prompts:
        ids = tokenizer.encode(prompt)[: max(positions // 2, 1)]
        length = min(max(config.sample_tokens, len(ids)), positions)
        params = SamplingParams(max_length=length, num_samples=SAMPLES)
        write = partial(generate_steps, sampler=sample)
        with state.runtime.autocast(), as_written(state):
            texts = [tokenizer.decode(row) for row in complete(model, ids, params, generate=write)]
        samples.append(Sample(prompt=prompt, texts=texts))
    if state.world.is_first:
        directory.append_samples(state.step, {part.prompt: part.texts for part in samples})
    observe(Sampled(step=state.step, samples=samples))
