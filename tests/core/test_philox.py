"""The counter-based generator: the paper's vectors, and the distribution it is used for."""

import math

import torch

from regpt.core.philox import MASK, exponential, philox


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def test_known_answers() -> None:
    # the first two and the pi vector of Random123's kat_vectors for philox4x32-10
    pi = words(0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0, 0), words(0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (MASK, MASK),
            words(MASK, MASK, MASK, MASK),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        ((0xA4093822, 0x299F31D0), pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for key, counter, expected in cases:
        assert tuple(int(word) for word in philox(key, counter)) == expected


def test_noise_is_exponential() -> None:
    ids = torch.arange(200_000)
    noise = exponential(7, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), ids)
    assert noise.dtype == torch.float64
    assert noise.min() > 0
    assert abs(noise.mean().item() - 1) < 0.01
    assert abs((noise > math.log(2)).double().mean().item() - 0.5) < 0.005


def test_noise_depends_on_every_coordinate() -> None:
    one = torch.ones(1, dtype=torch.int64)
    values = {
        exponential(seed, row * one, position * one, token * one).item()
        for seed in (0, 1, 2**32)
        for row in (0, 1)
        for position in (0, 1)
        for token in (0, 1)
    }
    assert len(values) == 24
