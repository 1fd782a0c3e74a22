"""The portable draw over a whole vocabulary, for several texts: `sampling.draw_portable`, sooner.

OpenAI's default is no top-k, so every token of the vocabulary takes part. The C kernel computes all
scores in float32 and names those that can win, mostly one; these are compared in float64, as there.
Without the kernel, or with a top-k, the plain draw is as good.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regpt.core.sampling import SamplingParams, filtered, sample
from regpt.fast.kernels.build import fields, load_library, numbers, unavailable_reason

MOST = 64
"""Candidates of one draw; with more, as of logits that are all -inf, the plain draw decides."""
PIECE = 4096
"""As in philox.c."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What decides a token: logits (V,) float32, in which a penalty is already, and the stream."""

    logits: Tensor
    params: SamplingParams
    number: int
    """The text's row in the random stream."""
    position: int

    @property
    def takes_all(self) -> bool:
        """Whether every token takes part."""
        return self.params.temperature != 0 and self.params.top_k is None


class Portable(ctypes.Structure):
    """`Portable` of philox.c."""

    _fields_ = (
        *fields(ctypes.c_uint64, "seed"),
        *fields(ctypes.c_int64, "row position"),
        *fields(ctypes.c_void_p, "logits scores bests ids uniform"),
        *fields(ctypes.c_int64, "found"),
    )


def draw_tokens(draws: Sequence[Draw]) -> list[int]:
    """The tokens that `sample` draws."""
    native = unavailable_reason("portable draw", draws_are_right) is None
    found = iter(candidates([draw for draw in draws if native and draw.takes_all]))
    return [
        winner(draw, *next(found)) if native and draw.takes_all else draw_plainly(draw)
        for draw in draws
    ]


def draws_are_right() -> bool:
    """Each the plain draw's."""
    params = SamplingParams(top_k=None, seed=5, rng="portable")
    draws = [
        Draw(logits=numbers(5000, seed=row), params=params, number=row, position=3)
        for row in range(8)
    ]
    found = zip(draws, candidates(draws), strict=True)
    return [winner(draw, *each) for draw, each in found] == [*map(draw_plainly, draws)]


def winner(draw: Draw, masked: Tensor, ids: Tensor, uniform: Tensor) -> int:
    """The token, of its `candidates` if there are any."""
    if not len(ids):
        return draw_plainly(draw)
    scores = masked[ids].double() - torch.log(uniform).neg_().log_()
    return int(ids[scores.argmax()])  # of equal ones the first, as there


def draw_plainly(draw: Draw) -> int:
    """The token, by `sample`."""
    numbers, positions = torch.tensor([draw.number]), torch.tensor([draw.position])
    return int(sample(draw.logits[None], draw.params, numbers=numbers, positions=positions))


def candidates(draws: Sequence[Draw]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each draw its logits after the filters, (V,); the ids of the tokens that can win, int64
    ascending; and their uniform numbers, float64.

    There are none, if they are more than `MOST` or the logits are no numbers.
    """
    if not draws:
        return []
    count, size = len(draws), len(draws[0].logits)
    masked = [filtered(draw.logits[None].float(), draw.params)[0].contiguous() for draw in draws]
    scores, bests = torch.empty(count, size), torch.empty(count, -(-size // PIECE))
    ids = torch.empty(count, MOST, dtype=torch.int64)
    uniform = torch.empty(count, MOST, dtype=torch.float64)
    table = (Portable * count)(
        *(
            Portable(
                seed=draw.params.seed & (2**64 - 1),
                row=draw.number,
                position=draw.position,
                logits=masked[i].data_ptr(),
                scores=scores[i].data_ptr(),
                bests=bests[i].data_ptr(),
                ids=ids[i].data_ptr(),
                uniform=uniform[i].data_ptr(),
            )
            for i, draw in enumerate(draws)
        )
    )
    load_library().regpt_portable(count, table, size, MOST, torch.get_num_threads())
    found = [each.found if each.found <= MOST else 0 for each in table]
    return [(masked[i], ids[i, :n], uniform[i, :n]) for i, n in enumerate(found)]
