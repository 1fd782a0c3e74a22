"""Each fault, made on purpose, is found and named; a sound model is left in peace."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import tiny
from torch import Tensor, nn

from regpt import GPT, GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.doctor.sanity_checks import (
    Check,
    check_first_loss,
    check_mask,
    check_one_batch,
    check_targets,
    check_tie,
    diagnose,
    is_learnt,
)
from regpt.system.runtime import find_runtime
from regpt.training.config import RunConfig

VOCABULARY = 512
SHAPE = GPTConfig(block_size=16, vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=32)
RUNTIME = find_runtime("cpu", dtype="fp32")


class SeesTheFuture(nn.Module):
    """Attention without a mask."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.c_attn, self.c_proj = attention.c_attn, attention.c_proj
        self.n_head = attention.n_head

    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Untied(GPT):
    """A head of its own."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.head = nn.Parameter(self.wte.weight.detach().clone())

    def unembed(self, x: Tensor) -> Tensor:
        return F.linear(x, self.head)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    optimizer = OptimizerConfig(clip=None, weight_decay=0.0)
    return tiny(tmp_path / "text", tmp_path / "run", model=SHAPE, lr=1e-2, optimizer=optimizer)


def batch(offset: int = 1) -> tuple[Tensor, Tensor]:
    """Sequences whose targets are the tokens `offset` on."""
    tokens = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))
    return tokens[:, :16], tokens[:, offset : 16 + offset]


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_sound_model_passes(config: RunConfig) -> None:
    checks = diagnose(GPT(SHAPE), config, RUNTIME, *batch())
    assert [check.name for check in checks] == ["targets", "mask", "tie", "one batch"]
    assert all(check.passed for check in checks), checks
    assert "learnt by heart" in checks[-1].text


def test_a_mask_leak_is_found_in_its_layer(config: RunConfig) -> None:
    model = GPT(SHAPE)
    x, y = batch()
    assert check_mask(model, x).passed
    model.h[1].attn = SeesTheFuture(model.h[1].attn)
    check = check_mask(model, x)
    assert not check.passed
    assert check.text.startswith("h.1.attn sees the future")
    assert named(diagnose(model, config, RUNTIME, x, y))["mask"] == check


def test_a_broken_tie_is_found(config: RunConfig) -> None:
    assert check_tie(GPT(SHAPE)).passed
    model = Untied(SHAPE)
    before = model.wte.weight.detach().clone()
    check = check_tie(model)
    assert not check.passed
    assert "the tie is broken" in check.text
    assert torch.equal(model.wte.weight, before)


@pytest.mark.parametrize(
    ("offset", "said", "learnt"),
    [(0, "the inputs themselves", "its own input"), (2, "2 tokens on, not 1", "the token 2 on")],
)
def test_shifted_labels_are_found_twice(
    config: RunConfig, offset: int, said: str, learnt: str
) -> None:
    x, y = batch(offset)
    check = check_targets(x, y)
    assert not check.passed
    assert said in check.text
    check = check_one_batch(GPT(SHAPE), config, RUNTIME, x, y)
    assert not check.passed
    assert learnt in check.text
    assert "the labels are shifted" in check.text


def test_targets_of_padding_and_of_nonsense() -> None:
    x, y = batch()
    assert check_targets(x, y.clone().index_fill(1, torch.arange(9, 16), -100)).passed
    wrong = y.clone()
    wrong[0, 3] = (wrong[0, 3] + 1) % VOCABULARY
    assert "only 97% of the targets" in check_targets(x, wrong).text


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


@pytest.mark.parametrize(
    ("loss", "said"),
    [(6.24, None), (6.4, None), (3.0, "knows the answers"), (9.0, "too wide")],
)
def test_the_first_loss_is_about_the_logarithm(
    config: RunConfig, loss: float, said: str | None
) -> None:
    check = check_first_loss(loss, config)
    assert check.passed == (said is None)
    assert "ln(512) is 6.238" in check.text
    assert said is None or said in check.text


def test_nothing_learnt_from_numbers_that_are_none() -> None:
    assert not is_learnt([10.0, float("nan")])
    assert not is_learnt([10.0, float("inf")])
    assert is_learnt([10.0, 4.0])
