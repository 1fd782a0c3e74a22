"""What a draw may not choose: masks over (B, V) logits, as transformers' processors make them."""

import torch
from torch import Tensor


def penalize(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Make tokens of `context` (B, T) less likely in `logits` (B, V)."""
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, context, True)
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Mask (B, V) logits below the k-th largest of their row; ties with it stay."""
    kth = torch.topk(logits, min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Mask all but the smallest set of (B, V) logits that holds probability p."""
    ascending, order = torch.sort(logits, descending=False)
    remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    remove[:, -1] = False  # the most likely token always stays
    return logits.masked_fill(remove.scatter(1, order, remove), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Mask (B, V) logits whose probability is below p times the largest of their row."""
    probabilities = logits.softmax(dim=-1)
    top, index = probabilities.max(dim=-1, keepdim=True)
    remove = (probabilities < p * top).scatter(1, index, False)
    return logits.masked_fill(remove, -torch.inf)
