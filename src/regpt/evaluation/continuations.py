"""How likely a model finds given continuations of given texts: what choice tests are scored by.

Rows are sorted by length, so a batch has little padding, and shared out over the processes. Only
the endings go through the head. The numbers do not depend on either, but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from regpt.core.data import IGNORE_INDEX, PADDING_ID
from regpt.core.model import GPT
from regpt.core.tokenizer import END_OF_TEXT_ID, Tokenizer
from regpt.evaluation.scoring import check_ids, evaluating, target_nats_and_hits
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.runtime import Runtime


@dataclass(frozen=True)
class Continuation:
    """Tokens to read and tokens to score after them; neither is empty."""

    context: list[int]
    ending: list[int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model says of one continuation."""

    nats: float
    """Summed cross-entropy of the ending's tokens."""
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
    lengths = [len(row.context) + len(row.ending) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    ours = order[world.rank :: world.size]
    nats, misses = np.zeros(len(rows)), np.zeros(len(rows))
    error = None
    try:
        with evaluating(model), runtime.autocast():
            while ours:
                count = max(1, batch_tokens // lengths[ours[0]])
                batch, ours = ours[:count], ours[count:]
                score_batch(model, rows, batch, runtime, nats=nats, misses=misses)
    except UserError as refused:
        error = refused
    world.raise_if_any_failed(error)
    if world.size > 1:
        both = torch.from_numpy(np.stack([nats, misses])).to(world.device)
        nats, misses = world.sum(both).cpu().numpy()
    return [
        Score(nats=float(nats[index]), tokens=len(row.ending), greedy=not misses[index])
        for index, row in enumerate(rows)
    ]


def score_batch(
    model: GPT,
    rows: Sequence[Continuation],
    batch: list[int],
    runtime: Runtime,
    *,
    nats: np.ndarray,
    misses: np.ndarray,
) -> None:
    """Fill in nats and misses, float64 (len(rows),) each, of the rows numbered in `batch`."""
    limit = model.config.block_size
    texts = [(rows[index].context + rows[index].ending)[-limit - 1 :] for index in batch]
    T = max(len(text) for text in texts) - 1
    x = torch.full((len(batch), T), PADDING_ID)
    y = torch.full((len(batch), T), IGNORE_INDEX)
    counts = []
    for row, (index, text) in enumerate(zip(batch, texts, strict=True)):
        ids = torch.tensor(text)
        count = min(len(rows[index].ending), len(text) - 1)
        x[row, : len(text) - 1] = ids[:-1]
        y[row, len(text) - 1 - count : len(text) - 1] = ids[-count:]
        counts.append(count)
    check_ids(model, x)
    check_ids(model, y)
    found, hits = target_nats_and_hits(model, x.to(runtime.device), y.to(runtime.device))
    owner = np.repeat(batch, counts)
    np.add.at(nats, owner, found.cpu().double().numpy())
    np.add.at(misses, owner, (~hits).cpu().double().numpy())
