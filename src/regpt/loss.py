"""Next-token loss as a function over the model.

`next_token_loss` sums instead of averaging, so that a global batch cut into micro-batches, over any
number of processes, is normalised once by its own number of targets: the mean of unequal means is
the field's most repeated accumulation bug (transformers#34191, litgpt#1947).
"""

import torch.nn.functional as F
from torch import Tensor

from regpt.model import GPT

IGNORE = -100


def next_token_loss(model: GPT, idx: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats, float32 scalar, over the targets that are not -100.

    Args:
        model: the model.
        idx: (B, T) int64 token ids.
        targets: (B, T) int64, the token after each position, or -100 where there is none.
    """
    logits = model.unembed(model.hidden(idx))
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
