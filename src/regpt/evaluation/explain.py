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
    idx = read(model, ids)
    if not 1 <= top <= model.config.vocab_size:
        raise UserError(f"--top must be from 1 to {model.config.vocab_size}, got {top}")
    places = []
    with evaluating(model):
        hidden = model.hidden(idx)[0]
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
    matrices are used on its own input.
    """
    layers = len(model.h)
    if not 0 <= layer < layers:
        raise UserError(f"--layer {layer}: the model has layers 0 to {layers - 1}")
    block = model.h[layer]
    assert isinstance(block, Block)
    with evaluating(model):
        x = residuals(model, ids)[layer]
        q, k, _ = F.linear(block.ln_1(x), block.attn.c_attn.weight, block.attn.c_attn.bias).chunk(
            3, dim=-1
        )
    heads, T = block.attn.n_head, len(ids) + 1
    q, k = (part.float().view(T, heads, -1).transpose(0, 1) for part in (q, k))  # (nh, T, hs)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    future = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1).cpu()


def residuals(model: GPT, ids: list[int]) -> list[Tensor]:
    """What enters each block, reading end-of-text + text, and what leaves the last: (1, T, C)."""
    idx = read(model, ids)
    x = model.wte(idx) + model.wpe(torch.arange(idx.shape[1], device=model.device))
    found = [x]
    for block in model.h:
        x = block(x)
        found.append(x)
    return found


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What the model would say at a position if it ended after some layer."""

    token: int
    """The most likely one,"""
    probability: float
    """and how likely."""
    actual: float | None
    """The probability of the token that stands there; None after the end."""


def logit_lens(model: GPT, ids: list[int]) -> list[list[Guess]]:
    """After the embedding and after each layer, a guess for every place of `explain_text`.

    The residual stream of each layer goes through the final LayerNorm and the head as if it were
    the last one's: one product a layer (nostalgebraist, "interpreting GPT: the logit lens", 2020).
    """
    guesses = []
    with evaluating(model):
        for x in residuals(model, ids):
            chances = model.unembed(model.ln_f(x))[0].float().softmax(dim=-1)  # (T, V)
            best = chances.max(dim=-1)
            there = torch.tensor(ids, device=chances.device)[:, None]
            actual = [*chances[:-1].gather(1, there).squeeze(1).tolist(), None]
            rows = zip(best.indices.tolist(), best.values.tolist(), actual, strict=True)
            guesses.append([Guess(token=t, probability=p, actual=given) for t, p, given in rows])
    return guesses


def read(model: GPT, ids: list[int]) -> Tensor:
    """End-of-text + text, (1, T) int64 on the model's device. UserError for one too long."""
    if len(ids) + 1 > model.config.block_size:
        raise UserError(
            f"the text has {len(ids)} tokens, the model reads {model.config.block_size - 1} after "
            "an end-of-text: give a shorter one"
        )
    idx = torch.tensor([[END_OF_TEXT_ID, *ids]])
    check_ids(model, idx)
    return idx.to(model.device)
