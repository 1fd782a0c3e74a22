"""Train on a small text as on the whole vocabulary, at the price of the tokens that occur.

Tiny Shakespeare uses 11,000 of GPT-2's 50,257 tokens. The others are never a target and never an
input; all that training does to them is push their logits down, each in proportion to its
probability. If their embedding rows are *equal* at the start, their gradients are equal, and any
optimizer that treats rows alike keeps them equal for ever. So one row can stand for all n of them:

    sum over the n of exp(logit)  =  exp(logit + ln n)

and the softmax over 50,257 tokens is one over 11,235, exactly. The gradient that reaches the
shared row is n times that of one of them, so it is divided by n.
(`tests/fast/test_compact_vocabulary.py` trains both ways.) The price: those rows start
equal instead of each from its own draw.

`compact` makes the small model, `expand` the ordinary one; nothing else changes. What is saved,
sampled from and validated is always the whole model.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regpt.core.model import GPT


@dataclass(frozen=True)
class CompactVocabulary:
    """Which tokens have a row of their own."""

    kept: Tensor
    """int64 (K,), ascending: the tokens that occur."""
    vocab_size: int
    """Tokens in all."""

    @classmethod
    def of(cls, tokens: np.ndarray, vocab_size: int) -> "CompactVocabulary":
        """The tokens that occur in an array of ids."""
        occurs = np.zeros(vocab_size, dtype=bool)
        occurs[tokens] = True
        return cls(torch.from_numpy(np.flatnonzero(occurs)), vocab_size)

    @property
    def shared(self) -> int:
        """How many tokens the last row stands for."""
        return self.vocab_size - len(self.kept)

    def lookup(self) -> Tensor:
        """int64 (vocab_size,): the row of each token; those without their own share the last."""
        rows = torch.full((self.vocab_size,), len(self.kept))
        rows[self.kept] = torch.arange(len(self.kept))
        return rows

    def compact_rows(self, rows: Tensor) -> Tensor:
        """(vocab_size, ...) to (K + 1, ...): the kept rows and one of the others."""
        lookup = self.lookup()
        other = int((lookup == len(self.kept)).nonzero()[0])
        return torch.cat([rows[self.kept.to(rows.device)], rows[other : other + 1]])

    def expand_rows(self, rows: Tensor) -> Tensor:
        """(K + 1, ...) to (vocab_size, ...): the last row for every token without its own."""
        return rows[self.lookup().to(rows.device)]


@torch.no_grad()
def compact(model: GPT, vocabulary: CompactVocabulary) -> GPT:
    """A model that shares all parameters with `model` but the token embedding, whose rows for
    tokens that do not occur become one row of zeros."""
    rows = vocabulary.compact_rows(model.wte.weight)
    rows[-1] = 0
    small = with_embedding(model, rows)
    small.multiplicity = vocabulary.shared
    return small


@torch.no_grad()
def expand(model: GPT, vocabulary: CompactVocabulary) -> GPT:
    """The ordinary model again: all parameters shared with `model` but the token embedding."""
    return with_embedding(model, vocabulary.expand_rows(model.wte.weight))


def with_embedding(model: GPT, rows: Tensor) -> GPT:
    """A model of another vocabulary around the same parameters."""
    with torch.device("meta"):
        other = GPT(replace(model.config, vocab_size=len(rows)))
    for name, child in model.named_children():
        if name != "wte":
            setattr(other, name, child)
    other.wte.weight = torch.nn.Parameter(rows)
    return other.train(model.training)
