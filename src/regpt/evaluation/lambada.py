"""LAMBADA: the last word of a passage that cannot be guessed from its last sentence alone.

Read in the form it was released in for GPT-2, one {"text": ...} per line. The last word, with the
blank before it, is what is scored: accuracy counts the passages whose every last-word token is the
model's most likely one, perplexity is exp of the mean loss per last word.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from regpt.core.model import GPT
from regpt.core.tokenizer import get_tokenizer
from regpt.evaluation.continuations import (
    Score,
    accuracy,
    encode_together,
    score_continuations,
)
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.json_text import field, read_objects
from regpt.system.runtime import Runtime


def read_passages(path: Path, *, limit: int | None = None) -> list[tuple[str, str]]:
    """(the passage but its last word, blank and last word), the first `limit` of them."""
    passages = []
    for number, value in islice(read_objects(path), limit):
        where = f"{path} line {number}"
        text = field(value, "text", str, where=where)
        passage, blank, word = text.rpartition(" ")
        if not passage.strip() or not word.strip():
            raise UserError(f"{where}: the text has no last word after others: drop the line")
        passages.append((passage, blank + word))
    return passages


def score_passages(
    model: GPT,
    passages: Sequence[tuple[str, str]],
    runtime: Runtime,
    *,
    batch_tokens: int,
    world: World,
) -> list[Score]:
    """A score per passage, in their order, on every process."""
    tokenizer = get_tokenizer()
    rows = [encode_together(tokenizer, passage, word) for passage, word in passages]
    return score_continuations(model, rows, runtime, batch_tokens=batch_tokens, world=world)


def summarize(scores: Sequence[Score]) -> dict[str, float]:
    """How many passages, accuracy and its standard error, perplexity per last word."""
    acc, acc_stderr = accuracy([score.greedy for score in scores])
    loss = sum(score.nll for score in scores) / len(scores)
    return {
        "examples": len(scores),
        "acc": acc,
        "acc_stderr": acc_stderr,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
    }
