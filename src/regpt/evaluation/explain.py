"""Look inside a text: how likely each token was, what else might have stood there, who looks where.

The text is read after an end-of-text, as GPT-2 saw a document begin, so its first token has a
probability too, and after its last one there are alternatives for what comes next.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.core.model import GPT, Block
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.evaluation.scoring import check_ids, evaluating
from regpt.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Place:
    """One position of a text."""

    token: int | None
    """The token that stands there; None after the end."""
    probability: float | None
    """What the model gave it, having read what stands before."""
    rank: int | None
    """1 if it was the most likely one."""
    alternatives: list[tuple[int, float]]
    """The most likely tokens and their probabilities, most likely first."""


def explain_text(model: GPT, ids: list[int], *, top: int = 5) -> list[Place]:
    """A place for each token, and one for what comes next: float32, whatever the model's device.

    Raises:
        UserError: a text longer than the model can read, or an impossible number of alternatives.
    """
    check_length(model, ids)
    if not 1 <= top <= model.config.vocab_size:
        raise UserError(f"--top must be from 1 to {model.config.vocab_size}, got {top}")
    idx = torch.tensor([[END_OF_TEXT_ID, *ids]])
    check_ids(model, idx)
    places = []
    with evaluating(model):
        hidden = model.hidden(idx.to(model.device))[0]
        for row, token in zip(hidden, [*ids, None], strict=True):  # (V,) at a time
            chances = model.unembed(row).float().softmax(dim=-1).cpu()
            best = chances.topk(top)
            alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            chance = None if token is None else chances[token].item()
            rank = None if chance is None else 1 + int((chances > chance).sum())
            places.append(
                Place(token=token, probability=chance, rank=rank, alternatives=alternatives)
            )
    return places


def attention_maps(model: GPT, ids: list[int], *, layer: int) -> Tensor:
    """Where each position of end-of-text + text looks, in one layer: float32 (nh, T, T) on the CPU.

    Row i, column j: the share of position j in what position i takes in; j <= i. The layer's own
    matrices are used on its own input; the other layers run as always.
    """
    check_length(model, ids)
    idx = torch.tensor([[END_OF_TEXT_ID, *ids]])
    check_ids(model, idx)
    layers = len(model.h)
    if not 0 <= layer < layers:
        raise UserError(f"--layer {layer}: the model has layers 0 to {layers - 1}")
    block = model.h[layer]
    assert isinstance(block, Block)
    inputs: list[Tensor] = []
    handle = block.attn.c_attn.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0])
    )
    try:
        with evaluating(model):
            model.hidden(idx.to(model.device))
            q, k, _ = F.linear(inputs[0], block.attn.c_attn.weight, block.attn.c_attn.bias).chunk(
                3, dim=-1
            )
    finally:
        handle.remove()
    heads, T = block.attn.n_head, len(ids) + 1
    q, k = (part.float().view(T, heads, -1).transpose(0, 1) for part in (q, k))  # (nh, T, hs)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    future = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1).cpu()


def check_length(model: GPT, ids: list[int]) -> None:
    """Refuse a text that does not fit behind an end-of-text."""
    if len(ids) + 1 > model.config.block_size:
        raise UserError(
            f"the text has {len(ids)} tokens, the model reads {model.config.block_size - 1} after "
            "an end-of-text: give a shorter one"
        )
