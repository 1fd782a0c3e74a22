"""One model on one machine: a text, HellaSwag, LAMBADA; each told in lines and kept as figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regpt.core.model import GPT
from regpt.datasets.corpus import Say
from regpt.evaluation import hellaswag, lambada
from regpt.evaluation.continuations import Score
from regpt.evaluation.hellaswag import Answer
from regpt.evaluation.texts import open_texts
from regpt.evaluation.validation import validate
from regpt.system.distributed import World
from regpt.system.files import make_directory, replace_files
from regpt.system.runtime import Runtime


@dataclass(kw_only=True)
class Suite:
    """Runs what is asked for; under torchrun all processes share the work."""

    model: GPT
    runtime: Runtime
    world: World
    batch_tokens: int
    """Tokens read at once."""
    details: Path | None
    """A folder for the results of every example."""
    say: Say
    """Told each figure, on every process."""
    found: dict[str, Any] = field(default_factory=dict)
    """The figures by name, JSON values."""

    def write_details(self, name: str, examples: Sequence[Answer | Score]) -> None:
        """One object per example, written by the first process; an error there stops all."""
        if self.details is None:
            return
        text = "".join(json.dumps(asdict(example)) + "\n" for example in examples)
        with self.world.fail_together():
            if self.world.is_first:
                make_directory(self.details)
                replace_files(self.details, {name: text.encode()})
        self.say(f"           every example in {self.details / name}")

    def score_text(
        self,
        sources: Sequence[str],
        *,
        fraction: float,
        block_size: int,
        stride: int | None,
        documents: bool,
    ) -> None:
        """Loss of a text, or of the last part of its characters."""
        text = open_texts(
            sources,
            validation_fraction=fraction,
            say=lambda line: self.say(f"note       {line}"),
        )
        result = validate(
            self.model,
            text,
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
        names = ("loss", "perplexity", "bits_per_byte", "nats_per_character", "tokens", "stride")
        self.found |= {name: getattr(result, name) for name in names}
        self.found |= {"block_size": block_size, "documents": documents}

    def score_hellaswag(
        self, path: Path | None, scorings: Sequence[hellaswag.Scoring], *, limit: int | None
    ) -> None:
        """Accuracies on HellaSwag, of a file or the published one."""
        if path is None:
            with self.world.fail_together():
                if self.world.is_first:
                    hellaswag.fetch()
            path = hellaswag.fetch()
        examples = hellaswag.read_examples(path, limit=limit)
        self.say(f"hellaswag  {len(examples):,} examples of {path.name}")
        figures: dict[str, object] = {"examples": len(examples)}
        self.found["hellaswag"] = figures
        for scoring in scorings:
            answers = hellaswag.answer_all(
                self.model,
                examples,
                self.runtime,
                scoring=scoring,
                batch_tokens=self.batch_tokens,
                world=self.world,
            )
            found = hellaswag.accuracies(answers)
            self.say(
                f"  {scoring:<8} acc {found['acc']:.4f} ± {found['acc_stderr']:.4f}, "
                f"acc_norm {found['acc_norm']:.4f} ± {found['acc_norm_stderr']:.4f}"
            )
            figures[scoring] = found
            self.write_details(f"hellaswag-{scoring}.jsonl", answers)

    def score_lambada(self, path: Path, *, limit: int | None) -> None:
        """Accuracy and perplexity of last words."""
        passages = lambada.read_passages(path, limit=limit)
        scores = lambada.score_passages(
            self.model, passages, self.runtime, batch_tokens=self.batch_tokens, world=self.world
        )
        found = self.found["lambada"] = lambada.summarize(scores)
        self.say(
            f"lambada    {found['examples']:,} passages of {path.name}: last word "
            f"{found['acc']:.4f} ± {found['acc_stderr']:.4f}, perplexity {found['perplexity']:.3f}"
        )
        self.write_details("lambada.jsonl", scores)
