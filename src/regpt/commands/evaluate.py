"""`regpt evaluate`: losses and accuracies that compare."""

import json as json_text
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from regpt.commands.sample import load
from regpt.core.model import GPT
from regpt.evaluation import hellaswag as swag
from regpt.evaluation import lambada as last_word
from regpt.evaluation.texts import open_texts
from regpt.evaluation.validation import validate
from regpt.system.distributed import World, open_world
from regpt.system.errors import UserError
from regpt.system.files import make_directory, replace_files
from regpt.system.json_text import finite
from regpt.system.runtime import Runtime, find_runtime

BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}


class Evaluation:
    """One model on one machine: runs what was asked for, prints it, collects it."""

    def __init__(
        self, model: GPT, runtime: Runtime, world: World, *, tokens: int, details: str | None
    ) -> None:
        self.model, self.runtime, self.world = model, runtime, world
        self.batch_tokens = tokens
        self.details = None if details is None else Path(details)
        self.found: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """A line, from the first process."""
        if self.world.is_first:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def first(self, work: Callable[[], Any]) -> Any:
        """Do it on the first process; an error there stops all."""
        with self.world.fail_together():
            return work() if self.world.is_first else None

    def write_details(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        """One object per example, in a file of the folder asked for."""
        directory = self.details
        if directory is None:
            return
        text = "".join(json_text.dumps(line) + "\n" for line in lines)

        def write() -> None:
            make_directory(directory)
            replace_files(directory, {name: text.encode()})

        self.first(write)
        self.say(f"           every example in {directory / name}")

    def score_text(
        self,
        sources: tuple[str, ...],
        *,
        fraction: float,
        block_size: int,
        stride: int | None,
        documents: bool,
    ) -> None:
        """Loss of a text."""
        result = validate(
            self.model,
            open_texts(
                sources,
                validation_fraction=fraction,
                say=lambda text: self.say(f"note       {text}"),
            ),
            self.runtime,
            block_size=block_size,
            stride=stride,
            documents=documents,
            batch_tokens=self.batch_tokens,
            world=self.world,
        )
        within = "within documents" if documents else "across documents"
        self.say(
            f"text       {', '.join(sources)}: {result.tokens:,} tokens, context of {block_size} "
            f"at most, stride {result.stride}, {within}\n"
            f"loss       {result.loss:.6f} nats per token, perplexity {result.perplexity:.3f}\n"
            f"           {result.bits_per_byte:.6f} bits per byte, "
            f"{result.nats_per_character:.6f} nats per character"
        )
        self.found |= {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "nats_per_character": result.nats_per_character,
            "tokens": result.tokens,
            "block_size": block_size,
            "stride": result.stride,
            "documents": documents,
        }

    def score_hellaswag(
        self, path: Path | None, scorings: Sequence[swag.Scoring], *, limit: int | None
    ) -> None:
        """Accuracies on HellaSwag."""
        if path is None:
            self.first(swag.fetch)
            path = swag.fetch()
        examples = swag.read_examples(path, limit=limit)
        self.say(f"hellaswag  {len(examples):,} examples of {path.name}")
        figures: dict[str, Any] = {"examples": len(examples)}
        for scoring in scorings:
            answers = swag.answer_all(
                self.model,
                examples,
                self.runtime,
                scoring=scoring,
                batch_tokens=self.batch_tokens,
                world=self.world,
            )
            acc, norm = swag.accuracies(answers)
            self.say(
                f"  {scoring:<8} acc {acc.value:.4f} ± {acc.stderr:.4f}, "
                f"acc_norm {norm.value:.4f} ± {norm.stderr:.4f}"
            )
            figures[scoring] = {
                "acc": acc.value,
                "acc_stderr": acc.stderr,
                "acc_norm": norm.value,
                "acc_norm_stderr": norm.stderr,
            }
            lines = [answer.to_json() for answer in answers]
            self.write_details(f"hellaswag-{scoring}.jsonl", lines)
        self.found["hellaswag"] = figures

    def score_lambada(self, path: Path, *, limit: int | None) -> None:
        """Accuracy and perplexity of last words."""
        passages = last_word.read_passages(path, limit=limit)
        scores = last_word.score_passages(
            self.model,
            passages,
            self.runtime,
            batch_tokens=self.batch_tokens,
            world=self.world,
        )
        result = last_word.summarize(scores)
        accuracy = result.accuracy
        self.say(
            f"lambada    {result.examples:,} passages of {path.name}: last word "
            f"{accuracy.value:.4f} ± {accuracy.stderr:.4f}, perplexity {result.perplexity:.3f}"
        )
        self.write_details("lambada.jsonl", [asdict(score) for score in scores])
        self.found["lambada"] = {
            "examples": result.examples,
            "acc": accuracy.value,
            "acc_stderr": accuracy.stderr,
            "perplexity": result.perplexity,
        }


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
    runtime = find_runtime(device, dtype=dtype)
    with open_world(runtime) as world:
        gpt = load(model, seed=1337).to(runtime.device)
        positions = gpt.config.block_size
        if block_size is not None and block_size > positions:
            raise UserError(f"--block-size {block_size} is above the model's {positions} positions")
        context = block_size or positions
        tokens = batch_size * context if batch_size else BATCH_TOKENS[runtime.device.type]
        run = Evaluation(gpt, runtime, world, tokens=tokens, details=details)
        run.say(f"model      {model}, {gpt.num_parameters():,} parameters, {runtime.describe()}")
        if data:
            run.score_text(
                data,
                fraction=validation_fraction,
                block_size=context,
                stride=stride,
                documents=documents,
            )
        if hellaswag is not None:
            path = Path(hellaswag[0]) if hellaswag else None
            scorings = swag.SCORINGS if scoring == "both" else (scoring,)
            run.score_hellaswag(path, scorings, limit=limit)
        if lambada is not None:
            run.score_lambada(Path(lambada), limit=limit)
        if json:
            found = {"model": model, "dtype": runtime.dtype_name} | run.found
            run.say(json_text.dumps(finite(found)))
