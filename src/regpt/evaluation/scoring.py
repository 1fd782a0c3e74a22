"""How surprised a model is by each token: the one computation every evaluation here is made of.

Only positions that are scored go through the head, a few hundred rows at a time: the logits of a
4 x 1024 text would be 0.8 GB in float32, while 256 rows stay in the cache of a CPU. Losses are
float32 whatever the compute dtype and are added up in float64, so that the order of the rows, the
batch size and the number of processes change nothing but the last digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from regpt.core.data import IGNORE_INDEX, Dataset
from regpt.core.model import GPT
from regpt.evaluation.windows import Windows
from regpt.fast.training.fused_loss import token_nll
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.runtime import Runtime

CPU_ROWS, GPU_ROWS = 256, 4096
"""Rows of logits at once: 256 x 50257 float32 are 51 MB."""


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


def score_targets(model: GPT, idx: Tensor, targets: Tensor, *, hits: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each scored target in nats, float32 (n,), row by row in reading order; and
    whether it is the model's most likely token, bool (n,), or (0,) where `hits` is not asked for.

    `model` is in eval mode; the caller holds autocast and no_grad. `idx` and `targets` are (B, T)
    int64: tokens, and the one after each of them, or -100 where none is scored.
    """
    scored = targets != IGNORE_INDEX
    hidden = model.hidden(idx)
    if bool(scored.all()):
        rows, wanted = hidden.flatten(0, 1), targets.flatten()
    else:
        rows, wanted = hidden[scored], targets[scored]  # (n, C), (n,)
    count = CPU_ROWS if idx.device.type == "cpu" else GPU_ROWS
    nll, hit = [rows.new_empty(0, dtype=torch.float32)], [scored.new_empty(0)]
    for start in range(0, len(wanted), count):
        target = wanted[start : start + count]
        logits = model.unembed(rows[start : start + count])  # (count, V)
        if hits:
            hit.append(logits.argmax(dim=-1) == target)
        nll.append(token_nll(logits, target))
    return torch.cat(nll), torch.cat(hit)


def score_windows(
    model: GPT,
    dataset: Dataset,
    windows: Windows,
    runtime: Runtime,
    *,
    batch_tokens: int,
    world: World | None = None,
    misses: bool = False,
) -> np.ndarray:
    """For each window the summed cross-entropy of its targets in nats and, if `misses` are asked
    for, how many of them are not the model's most likely token: float64 (2, n), on every process.

    The windows are shared out over the processes of `world` (default: this one alone), each of
    which has the whole model: a sharded one must be asked without. `batch_tokens`, read at once,
    changes the figures by rounding. Raises UserError for a token outside the vocabulary.
    """
    world = world or World(device=runtime.device)
    scores = np.zeros((2, len(windows)))
    with world.fail_together(), evaluating(model), runtime.autocast():
        for rows in windows.batches(batch_tokens, world):
            batch = windows.take(rows)
            x, y = batch.read(dataset)
            check_ids(model, x)  # a token out of range may be one that only one process reads
            check_ids(model, y)
            nll, hits = score_targets(
                model, x.to(runtime.device), y.to(runtime.device), hits=misses
            )
            owners = np.repeat(rows, batch.stops - batch.scored + 1)
            np.add.at(scores[0], owners, nll.cpu().double().numpy())
            if misses:
                np.add.at(scores[1], owners, (~hits).cpu().double().numpy())
    if world.size == 1:
        return scores
    return world.sum(torch.from_numpy(scores).to(world.device)).cpu().numpy()
