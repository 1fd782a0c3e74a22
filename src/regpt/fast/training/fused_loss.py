"""The next-token loss on a CPU in bfloat16: logits become their gradient in one pass of C.

`regpt.core.loss` walks over a chunk of logits once for each operator. Here the head reads the
bfloat16 copy of its matrix (`bf16_weights.py`), and one C loop takes a row's maximum, its
exponentials, their sum and the gradient while the row is in the cache. `tests/core/test_loss.py`
holds the two together; where the kernel does not fit, the plain pass goes on.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.core import loss as plain
from regpt.core.data import IGNORE_INDEX
from regpt.core.model import GPT
from regpt.fast.kernels import training
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training.bf16_weights import shadow_of
from regpt.system.runtime import compute_dtype

WORTH_COMPILING = 1 << 20
"""Logits from which on the C kernel is asked for: it is compiled once, in seconds."""


def next_token_loss(model: GPT, idx: Tensor, targets: Tensor, *, divisor: float = 1.0) -> Tensor:
    """`regpt.core.loss.next_token_loss`, arguments and result alike."""
    kept = shadow_of(model.wte.weight)
    if kept is None or compute_dtype(idx.device) != torch.bfloat16:
        return plain.next_token_loss(model, idx, targets, divisor=divisor)
    tiles = kept.fresh()
    rows = min(plain.chunk_rows(len(tiles)), idx.numel())
    fits = fits_kernel(tiles, logits=rows * len(tiles))
    return plain.next_token_loss(
        *(model, idx, targets),
        divisor=divisor,
        tiles=tiles,
        to_gradient=to_gradient if fits else plain.to_gradient,
    )


def to_gradient(logits: Tensor, targets: Tensor, vocab_size: int, multiplicity: int = 1) -> Tensor:
    """`regpt.core.loss.to_gradient` in one pass of C."""
    more = math.log(multiplicity)
    each = training.loss(
        logits, targets, vocab_size, ignored=IGNORE_INDEX, more=more, gradient=True
    )
    return each.sum()


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target (n,) in nats, float32, from logits (n, V)."""
    if logits.is_contiguous() and fits_kernel(logits, logits=logits.numel()):
        return training.loss(
            logits, targets, logits.shape[1], ignored=IGNORE_INDEX, more=0.0, gradient=False
        )
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="none")


def fits_kernel(like: Tensor, *, logits: int) -> bool:
    """Whether the C kernel takes so many logits of this device and dtype.

    It is compiled now, if it never was, for a loss worth it.
    """
    cpu = like.device.type == "cpu" and like.dtype == torch.bfloat16
    return cpu and logits >= WORTH_COMPILING and unavailable_reason(*training.LOSS) is None
