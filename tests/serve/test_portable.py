"""The server's draw is the library's, token for token."""

import pytest
import torch

from regpt.core.philox import exponential
from regpt.core.sampling import SamplingParams, sample
from regpt.fast.kernels import build
from regpt.fast.kernels.build import unavailable_reason
from regpt.serve import portable

PARAMS = [
    {},
    {"temperature": 0.7},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 20},
    {"temperature": 0},
]


@pytest.mark.parametrize("fields", PARAMS)
@pytest.mark.parametrize("seed", [0, 2**64 - 1, -3])
def test_draws_what_sample_draws(fields: dict[str, float], seed: int) -> None:
    logits = torch.randn(40, 1003) * 2
    logits[7, ::2] = logits[7, 1]  # equal scores need equal noise, equal logits do not disturb
    params = SamplingParams(**({"top_k": None, "seed": seed, "rng": "portable"} | fields))
    numbers, positions = torch.arange(40) % 3, torch.arange(40) * 7
    expected = sample(logits, params, numbers=numbers, positions=positions).tolist()
    pairs = zip(numbers.tolist(), positions.tolist(), strict=True)
    draws = [
        portable.Draw(logits=row, params=params, number=number, position=position)
        for row, (number, position) in zip(logits, pairs, strict=True)
    ]
    assert portable.draw_tokens(draws) == expected


kernel = pytest.mark.skipif(unavailable_reason() is not None, reason="there is no C kernel here")


def draws(logits: torch.Tensor, seed: int) -> list[portable.Draw]:
    params = SamplingParams(top_k=None, seed=seed, rng="portable")
    return [
        portable.Draw(logits=row, params=params, number=5, position=position)
        for position, row in enumerate(logits)
    ]


@kernel
@pytest.mark.parametrize("seed", [1, 2**63 + 12345, -1])
@pytest.mark.parametrize("size", [1003, 9001])
def test_the_winner_is_among_the_candidates_and_has_its_number(seed: int, size: int) -> None:
    logits = torch.randn(300, size, generator=torch.Generator().manual_seed(seed % 2**32))
    logits *= 10.0 ** (torch.arange(300)[:, None] % 5 - 1)
    for position, (row, ids, uniform) in enumerate(portable.candidates(draws(logits, seed))):
        noise = exponential(seed, torch.tensor(5), torch.tensor(position), torch.arange(size))
        assert int((row.double() - noise.log()).argmax()) in ids.tolist()
        assert torch.equal(-torch.log(uniform), noise[ids])


@kernel
def test_nothing_is_said_of_logits_that_are_none() -> None:
    for number in (-torch.inf, torch.nan):
        [(_, ids, _)] = portable.candidates(draws(torch.full((1, 1003), number), 1))
        assert not len(ids)


@kernel
def test_a_kernel_that_names_others_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = portable.candidates

    def wrong(draws: list[portable.Draw]) -> list[tuple[torch.Tensor, ...]]:
        return [(logits, ids * 0, uniform) for logits, ids, uniform in right(draws)]

    monkeypatch.setattr(build, "TRIED", {})
    monkeypatch.setattr(portable, "candidates", wrong)
    some = draws(torch.randn(9, 1003), seed=4)
    assert portable.draw_tokens(some) == [*map(portable.draw_plainly, some)]
    assert build.refused() == "the compiled kernels' numbers are wrong: portable draw"
