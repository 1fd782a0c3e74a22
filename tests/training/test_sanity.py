"""One batch learnt by heart: sound models pass, each fault is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import tiny
from torch import Tensor

from regpt import GPT, GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.system.runtime import find_runtime
from regpt.training.config import RunConfig
from regpt.training.sanity import check_one_batch, is_learnt

VOCABULARY = 512
SHAPE = GPTConfig(block_size=16, vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=32)
RUNTIME = find_runtime("cpu", dtype="fp32")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    optimizer = OptimizerConfig(clip=None, weight_decay=0.0)
    return tiny(tmp_path / "text", tmp_path / "run", model=SHAPE, lr=1e-2, optimizer=optimizer)


def batch() -> tuple[Tensor, Tensor]:
    """Two sequences, x and y (2, 16)."""
    tokens = torch.randint(0, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(3))
    return tokens[:, :-1], tokens[:, 1:]


def test_a_sound_model_learns_one_batch(config: RunConfig) -> None:
    check = check_one_batch(GPT(SHAPE), config, RUNTIME, *batch())
    assert check.passed
    assert "learnt by heart" in check.text


@pytest.mark.parametrize(("lr", "word"), [(1e-4, "too low"), (10.0, "too high")])
def test_a_wrong_learning_rate_is_found(config: RunConfig, lr: float, word: str) -> None:
    check = check_one_batch(GPT(SHAPE), replace(config, lr=lr), RUNTIME, *batch())
    assert not check.passed
    assert f"the learning rate is {word}" in check.text


def test_what_no_rate_cures_is_said() -> None:
    class Deaf(GPT):
        def hidden(self, idx: Tensor, cache: object = None) -> Tensor:
            return super().hidden(torch.zeros_like(idx)) * 0.0

    shape = replace(SHAPE, n_layer=1, n_embd=8)
    config = RunConfig(model=shape, block_size=16, lr=1e-2)
    check = check_one_batch(Deaf(shape), config, RUNTIME, *batch())
    assert not check.passed
    assert "nor at rates 100 times lower or higher" in check.text


def test_nothing_learnt_from_numbers_that_are_none() -> None:
    assert not is_learnt([10.0, float("nan")])
    assert not is_learnt([10.0, float("inf")])
    assert is_learnt([10.0, 4.0])
