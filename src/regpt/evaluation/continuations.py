"""How likely a model finds given continuations of given texts: what choice tests are scored by.

A continuation is a window (windows.py) over all rows end to end, whose ending is scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regpt.core.data import ArrayDataset
from regpt.core.model import GPT
from regpt.core.tokenizer import END_OF_TEXT_ID, Tokenizer
from regpt.evaluation.scoring import score_windows
from regpt.evaluation.windows import Windows
from regpt.system.distributed import World
from regpt.system.runtime import Runtime


@dataclass(frozen=True)
class Continuation:
    """Tokens to read and tokens to score after them; neither is empty."""

    context: list[int]
    ending: list[int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model says of one continuation."""

    nll: float
    """Summed cross-entropy of the ending's tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether every token of the ending is the most likely one."""


def encode_apart(tokenizer: Tokenizer, context: str, ending: str) -> Continuation:
    """Context and ending tokenised each by itself (the lecture)."""
    return Continuation(tokenizer.encode(context) or [END_OF_TEXT_ID], tokenizer.encode(ending))


def encode_together(tokenizer: Tokenizer, context: str, ending: str) -> Continuation:
    """The whole text tokenised, then cut after as many tokens as the context has by itself.

    This is what EleutherAI's harness does; blanks at the end of the context move to the ending.
    """
    bare = context.rstrip()
    ending = context[len(bare) :] + ending
    head, whole = tokenizer.encode(bare), tokenizer.encode(bare + ending)
    if not head:
        return Continuation([END_OF_TEXT_ID], whole)
    return Continuation(head, whole[len(head) :])


def score_continuations(
    model: GPT,
    rows: Sequence[Continuation],
    runtime: Runtime,
    *,
    batch_tokens: int,
    world: World,
) -> list[Score]:
    """A score for each row, in their order, on every process.

    A row longer than the model can read loses tokens at its beginning.
    """
    limit = model.config.block_size
    endings = np.array([len(row.ending) for row in rows], dtype=np.int64)
    ends = np.cumsum([len(row.context) + len(row.ending) for row in rows], dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    starts = ends - np.minimum(lengths, limit + 1)
    windows = Windows(starts, np.maximum(ends - endings, starts + 1), ends - 1)
    tokens = np.array([token for row in rows for token in row.context + row.ending], np.int64)
    nll, misses = score_windows(
        model,
        ArrayDataset(tokens),
        windows,
        runtime,
        batch_tokens=batch_tokens,
        world=world,
        misses=True,
    )
    return [
        Score(nll=float(nll[index]), tokens=len(row.ending), greedy=not misses[index])
        for index, row in enumerate(rows)
    ]


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """The share of right answers, and its standard error (of the sample)."""
    n, share = len(right), sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / max(n - 1, 1))
