"""Copies that keep their numbers, side by side in one buffer."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import TINY, tiny

from regpt.core.optimizer import OptimizerConfig
from regpt.training.background_save import HostMemory, aligned_size
from regpt.training.loop import train
from regpt.training.state import snapshot_bytes, take_snapshot

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64])
SHAPES = st.lists(st.integers(0, 5), max_size=3)


def random_tensor(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 100, shape).to(dtype)


@given(st.lists(st.tuples(SHAPES, DTYPES), max_size=6), st.integers(0, 6))
def test_copies_keep_their_numbers_and_stay_apart(kinds: list, room_for: int) -> None:
    originals = [random_tensor(shape, dtype) for shape, dtype in kinds]
    memory = HostMemory()
    memory.allocate(sum(map(aligned_size, originals[:room_for])))
    for _ in range(2):
        memory.reset()
        copies = [memory.copy(tensor) for tensor in originals]
        kept = [tensor.clone() for tensor in originals]
        for tensor in originals:
            tensor.zero_()  # training goes on
        assert all(torch.equal(a, b) for a, b in zip(copies, kept, strict=True))
        assert all(a.dtype == b.dtype for a, b in zip(copies, kept, strict=True))
        originals = kept


def test_a_transposed_tensor_is_copied_in_order() -> None:
    memory = HostMemory()
    memory.allocate(1 << 10)
    tensor = torch.arange(6.0).view(2, 3).t()
    assert memory.copy(tensor).is_contiguous()
    assert torch.equal(memory.copy(tensor), tensor)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_snapshot_has_exactly_the_room_it_asks_for(
    text_file: Path, tmp_path: Path, optimizer: str
) -> None:
    config = tiny(text_file, tmp_path / "run", steps=2, optimizer=OptimizerConfig(name=optimizer))
    state = train(replace(config, model=replace(TINY, n_embd=32)))
    handed_out = []

    class Watched(HostMemory):
        def copy(self, tensor: torch.Tensor) -> torch.Tensor:
            handed_out.append(super().copy(tensor))
            return handed_out[-1]

    memory = Watched()
    memory.allocate(snapshot_bytes(state))
    snapshot = take_snapshot(state, memory)
    places = sorted((copy.data_ptr(), aligned_size(copy)) for copy in handed_out)
    assert all(a + size == b for (a, size), (b, _) in pairwise(places))
    plain = take_snapshot(state)
    for name, tensor in plain.optimizer.items():
        assert torch.equal(tensor, snapshot.optimizer[name])
    for name, tensor in plain.model.items():
        assert torch.equal(tensor, snapshot.model[name])
