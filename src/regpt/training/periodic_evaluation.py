"""Periodic evaluation during training: validation loss, HellaSwag, samples.

Evaluation changes nothing: it draws from no random stream of the training, restores the model's
mode, and runs compiled blocks uncompiled where it reads texts of many lengths, each of which would
be compiled anew. Losses with and without are bit-equal, tested.
"""

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
    """What a run evaluates, and when; a file that cannot be read fails before the run begins.

    Each kind yields the lines of metrics.jsonl that it has to add, if any.
    """

    def __init__(self, state: TrainState) -> None:
        config = self.config = state.config
        self.state = state
        self.batch_tokens = max(config.batch_size * config.block_size, BATCH_TOKENS)
        """Tokens per forward pass: a training micro-batch, which fits for certain, or some more."""
        self.world = World(device=state.world.device) if config.shard else state.world
        """Who shares the work; a sharded model's forward takes all at once, so each does it all."""
        self.examples: list[hellaswag.Example] = []
        self.num_published = 0
        """Examples in the file; `examples` are spread over it."""
        if config.hellaswag is not None:
            examples = hellaswag.read_examples(find_examples(config.hellaswag, state.world))
            self.num_published = len(examples)
            self.examples = hellaswag.spread(examples, config.hellaswag_examples)

    def after_step(self) -> Iterator[Entry]:
        """Whatever is due now that the step is counted; after the last step everything is."""
        config, step = self.config, self.state.step
        last = step == config.steps

        def due(every: int | None) -> bool:
            return every is not None and step % every == 0

        # every checkpoint is validated too: "best" is then a choice among all of them
        saving = config.eval_every is not None and due(config.save_every)
        if last or saving or due(config.eval_every):
            yield from self.score_validation()
        if due(config.quick_eval_every):
            yield from self.score_quick_validation()
        if self.examples and (last or due(config.hellaswag_every)):
            yield self.score_hellaswag()
        if last or due(config.sample_every):
            yield from self.write_samples()

    def score_validation(self) -> Iterator[Entry]:
        """Score the validation text, if there is one."""
        state = self.state
        if state.data.validation is None:
            return
        result = validate(
            state.whole_model(),
            state.data.validation,
            state.runtime,
            block_size=self.config.block_size,
            batch_tokens=self.batch_tokens,
            world=self.world,
        )
        state.val_loss, state.val_step = result.loss, state.step
        yield {
            "step": state.step,
            "val_loss": result.loss,
            "val_bits_per_byte": result.bits_per_byte,
            "val_nats_per_character": result.nats_per_character,
            "val_tokens": result.tokens,
        }

    def score_quick_validation(self) -> Iterator[Entry]:
        """Score the same few windows each time, from all over the validation text.

        The keys are not the whole text's, so that neither "best" nor a comparison of runs takes one
        figure for the other.
        """
        state, block_size = self.state, self.config.block_size
        if state.data.validation is None:
            return
        windows = cut_windows(state.data.validation, block_size=block_size)
        windows = windows.spread(max(QUICK_TOKENS // block_size, 1))
        nll, _ = score_windows(
            state.whole_model(),
            state.data.validation,
            windows,
            state.runtime,
            batch_tokens=self.batch_tokens,
            world=self.world,
        )
        yield {
            "step": state.step,
            "quick_val_loss": nll.sum().item() / windows.targets,
            "quick_val_tokens": windows.targets,
        }

    def score_hellaswag(self) -> Entry:
        """Score the examples by the lecture's rules, in float32."""
        state = self.state
        with torch.compiler.set_stance("force_eager"):
            answers = hellaswag.answer_all(
                state.whole_model(),
                self.examples,
                replace(state.runtime, dtype=torch.float32),
                scoring="lecture",
                batch_tokens=self.batch_tokens,
                world=self.world,
            )
        found = hellaswag.accuracies(answers)
        return {
            "step": state.step,
            "hellaswag_acc": found["acc"],
            "hellaswag_acc_norm": found["acc_norm"],
            "hellaswag_acc_norm_stderr": found["acc_norm_stderr"],
            "hellaswag_examples": len(self.examples),
            "hellaswag_scoring": "lecture",
        }

    def write_samples(self) -> Iterator[Entry]:
        """Let the model continue the prompts; its random stream is its own, the same each time."""
        state, config = self.state, self.config
        if not config.prompts or not (state.world.is_first or config.shard):
            return
        model, tokenizer = state.whole_model(), get_tokenizer()
        positions = config.model.block_size
        generate, samples = partial(generate_steps, sampler=sample), {}
        for prompt in config.prompts:
            ids = tokenizer.encode(prompt)[: max(positions // 2, 1)]
            length = min(max(config.sample_tokens, len(ids)), positions)
            params = SamplingParams(max_length=length, num_samples=SAMPLES)
            with state.runtime.autocast(), torch.compiler.set_stance("force_eager"):
                rows = complete(model, ids, params, generate=generate)
                samples[prompt] = [tokenizer.decode(row) for row in rows]
        yield {"step": state.step, "samples": samples}


def find_examples(named: str, world: World) -> Path:
    """HellaSwag's file; a download is the first process's work."""
    if named != DOWNLOAD:
        return Path(named)
    if world.is_first:
        hellaswag.fetch()
    world.barrier()
    return hellaswag.fetch()
