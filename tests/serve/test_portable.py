"""The server's draw is the library's, token for token."""

import pytest
import torch

from regpt.core.philox import exponential
from regpt.core.sampling import SamplingParams, sample
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
    found = [
        portable.draw(row, params, number=number, position=position)
        for row, (number, position) in zip(logits, pairs, strict=True)
    ]
    assert found == expected


@pytest.mark.skipif(unavailable_reason() is not None, reason="there is no C kernel here")
@pytest.mark.parametrize("seed", [1, 2**63 + 12345, -1])
def test_the_kernel_makes_the_numbers_of_philox(seed: int) -> None:
    from regpt.fast.kernels.build import load_library

    uniform = torch.empty(1003, dtype=torch.float64)
    load_library().regpt_philox(seed & (2**64 - 1), 5, 900, 1003, uniform.data_ptr(), 2)
    expected = exponential(seed, torch.tensor([5]), torch.tensor([900]), torch.arange(1003))
    assert torch.equal(-torch.log(uniform), expected)
