"""How surprised a model is by each token: the one computation every evaluation here is made of.

Only positions that are scored go through the head, a few hundred rows at a time: a text of B x T
tokens would need B x T x 50257 logits, 0.8 GB in float32 for 4 x 1024, while 256 rows stay in the
cache of a CPU. A multiple-choice question needs the head for its endings only.

Losses are float32 whatever the compute dtype, and a caller adds them up in float64, so that the
order of the rows, the batch size and the number of processes change nothing but the last digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from regpt.core.data import IGNORE_INDEX
from regpt.core.model import GPT
from regpt.fast.training.fused_loss import token_nll
from regpt.system.errors import UserError

HEAD_ROWS = {"cpu": 256}
"""Rows of logits at once: 256 x 50257 float32 are 51 MB."""
HEAD_ROWS_ELSEWHERE = 4096


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Without dropout and gradients; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: a sharded model would keep what it gathered
            yield
    finally:
        model.train(was_training)


def check_ids(model: GPT, idx: Tensor) -> None:
    """Refuse tokens the model has no embedding for, before an index fails on a device.

    -100 passes: the target that is not scored.
    """
    if not idx.numel():
        return
    smallest, largest = (int(bound) for bound in idx.where(idx != IGNORE_INDEX, 0).aminmax())
    if smallest < 0 or largest >= model.config.vocab_size:
        raise UserError(
            f"token {smallest if smallest < 0 else largest} of the text is outside the model's "
            f"vocabulary of {model.config.vocab_size}: evaluate with a text of its own tokenizer"
        )


def target_nats(model: GPT, idx: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each scored target in nats, float32 (n,), row by row in reading order.

    Args:
        model: the model, in eval mode; the caller holds autocast and no_grad.
        idx: (B, T) int64 token ids.
        targets: (B, T) int64, the token after each position, or -100 where none is scored.
    """
    return score(model, idx, targets, best=False)[0]


def target_nats_and_hits(model: GPT, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`target_nats`, and whether each target is the model's most likely token, bool (n,)."""
    return score(model, idx, targets, best=True)


def score(model: GPT, idx: Tensor, targets: Tensor, *, best: bool) -> tuple[Tensor, Tensor]:
    """The work of both: nats (n,), and hits (n,) if asked for, else empty."""
    scored = targets != IGNORE_INDEX
    hidden = model.hidden(idx)
    if bool(scored.all()):
        rows, wanted = hidden.flatten(0, 1), targets.flatten()
    else:
        rows, wanted = hidden[scored], targets[scored]  # (n, C), (n,)
    count = HEAD_ROWS.get(idx.device.type, HEAD_ROWS_ELSEWHERE)
    nats, hits = [rows.new_empty(0, dtype=torch.float32)], [scored.new_empty(0)]
    for start in range(0, len(wanted), count):
        target = wanted[start : start + count]
        logits = model.unembed(rows[start : start + count])  # (count, V)
        if best:
            hits.append(logits.argmax(dim=-1) == target)
        nats.append(token_nll(logits, target))
    return torch.cat(nats), torch.cat(hits)
