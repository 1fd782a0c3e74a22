"""HellaSwag: which of four endings a model finds most likely (Zellers et al., 2019).

Two harnesses give 29.55 and 31.14 for the same weights, so a figure says which rules it was scored
by; both are here, by name, and both with and without a correction for the endings' length:

| scoring | text | tokens | acc_norm divides by |
|---|---|---|---|
| lecture | `ctx`, a blank, the ending, as they stand | context and ending apart | tokens |
| harness | label and ": " before; "[...]" taken out; `ctx_b` capitalised | together | characters |

`acc` takes the ending of the smallest summed loss, `acc_norm` that of the smallest normalised one;
the first wins a tie, and in float32 there are none (in bfloat16 four scores near 11 have three
values). The harness' rules are those of EleutherAI's lm-eval 0.4.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from regpt.core.model import GPT
from regpt.core.tokenizer import Tokenizer, get_tokenizer
from regpt.datasets.corpora import download_once
from regpt.evaluation.continuations import (
    Continuation,
    accuracy,
    encode_apart,
    encode_together,
    score_continuations,
)
from regpt.system.cache_folder import cache_folder
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.json_text import field, read_objects
from regpt.system.runtime import Runtime

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
NAME = "hellaswag_val.jsonl"
BLOB = "git blob 0f5ee25d72216f12317d5d8a7b92deafa423d81e"
"""The file's name in git: sha1 of "blob LENGTH\\0" and its bytes."""
LIMIT = 32 << 20

Scoring = Literal["lecture", "harness"]
SCORINGS: tuple[Scoring, ...] = ("lecture", "harness")


@dataclass(frozen=True, kw_only=True)
class Example:
    ind: int
    activity_label: str
    ctx: str
    ctx_a: str
    ctx_b: str
    endings: tuple[str, str, str, str]
    label: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says to an example: a line of the per-example results."""

    ind: int
    label: int
    choice: int
    """The ending of the smallest loss,"""
    choice_norm: int
    """and of the smallest loss per unit of length."""
    nll: tuple[float, ...]
    """Summed cross-entropy of each ending, in nats."""
    lengths: tuple[int, ...]
    """What acc_norm divides by."""


def parse_example(value: dict[str, Any], where: str) -> Example:
    endings = field(value, "endings", list, where=where)
    if len(endings) != 4 or not all(isinstance(text, str) and text.strip() for text in endings):
        raise UserError(f"{where}: 'endings' is not four texts: mend or drop the line")
    label = field(value, "label", int, where=where)
    if not 0 <= label < 4:
        raise UserError(f"{where}: label {label} is not one of 0, 1, 2, 3: mend or drop the line")
    texts = {
        name: field(value, name, str, where=where)
        for name in ("activity_label", "ctx", "ctx_a", "ctx_b")
    }
    return Example(
        ind=field(value, "ind", int, where=where), label=label, endings=tuple(endings), **texts
    )


def read_examples(path: Path, *, limit: int | None = None) -> list[Example]:
    return [
        parse_example(value, f"{path} line {number}")
        for number, value in islice(read_objects(path), limit)
    ]


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them, or all, evenly spread: neighbours in the file are of one kind."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]


def fetch() -> Path:
    """The published 10,042 examples: downloaded once, verified at every reading."""
    path = cache_folder() / NAME
    download_once(
        "HellaSwag",
        URL,
        path,
        digest=blob_name,
        expected=BLOB,
        limit=LIMIT,
        way_out="give a copy with --hellaswag FILE",
    )
    return path


def blob_name(data: bytes) -> str:
    name = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return f"git blob {name}"


def clean(text: str) -> str:
    """The harness' rules for a text: WikiHow's "[title]", "[step]" and so on are taken out."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def encode(example: Example, scoring: Scoring, tokenizer: Tokenizer) -> list[Continuation]:
    if scoring == "lecture":
        return [encode_apart(tokenizer, example.ctx, " " + end) for end in example.endings]
    context = clean(f"{example.activity_label}: {example.ctx_a} {example.ctx_b.capitalize()}")
    return [encode_together(tokenizer, context, " " + clean(end)) for end in example.endings]


def answer_all(
    model: GPT,
    examples: Sequence[Example],
    runtime: Runtime,
    *,
    scoring: Scoring,
    batch_tokens: int,
    world: World,
) -> list[Answer]:
    """The model's answers, in the examples' order, on every process."""
    tokenizer = get_tokenizer()
    rows = [row for example in examples for row in encode(example, scoring, tokenizer)]
    scores = score_continuations(model, rows, runtime, batch_tokens=batch_tokens, world=world)
    answers = []
    for index, example in enumerate(examples):
        four = scores[4 * index : 4 * index + 4]
        if scoring == "lecture":
            lengths = tuple(score.tokens for score in four)
        else:
            lengths = tuple(max(len(clean(end)), 1) for end in example.endings)
        nll = tuple(score.nll for score in four)
        norm = [loss / length for loss, length in zip(nll, lengths, strict=True)]
        answer = Answer(
            ind=example.ind,
            label=example.label,
            choice=nll.index(min(nll)),
            choice_norm=norm.index(min(norm)),
            nll=nll,
            lengths=lengths,
        )
        answers.append(answer)
    return answers


def accuracies(answers: Sequence[Answer]) -> dict[str, float]:
    """acc and acc_norm, and their standard errors."""
    acc, acc_stderr = accuracy([answer.choice == answer.label for answer in answers])
    norm, norm_stderr = accuracy([answer.choice_norm == answer.label for answer in answers])
    return {"acc": acc, "acc_stderr": acc_stderr, "acc_norm": norm, "acc_norm_stderr": norm_stderr}
