"""Attention in blocks is torch's own: values and gradients, in fp32 and bf16."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_model import sharpen
from torch import Tensor

from regpt import GPT, GPTConfig
from regpt.core.kv_cache import KeyValueCache
from regpt.fast.kernels import training as native
from regpt.fast.training import blocked_attention as module
from regpt.fast.training.blocked_attention import attend_in_blocks, causal_attention

HEADS, C = 3, 48
SHAPE = GPTConfig(block_size=24, vocab_size=61, n_layer=2, n_head=2, n_embd=16)


def plain(qkv: Tensor, n_head: int) -> Tensor:
    B, T, _ = qkv.shape
    q, k, v = (x.view(B, T, n_head, -1).transpose(1, 2) for x in qkv.split(C, dim=2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, C)


def both_ways(
    function: Callable[[Tensor, int], Tensor], T: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64, of numbers that bfloat16 holds exactly."""
    draw = torch.Generator().manual_seed(T)
    qkv = torch.randn(2, T, 3 * C, generator=draw).bfloat16().to(dtype).requires_grad_()
    dy = torch.randn(2, T, C, generator=draw).bfloat16().to(dtype)
    y = function(qkv, HEADS)
    y.backward(dy)
    assert qkv.grad is not None
    return y.detach().double(), qkv.grad.double()


@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 16, 29])
def test_equals_torchs_in_fp32(monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)  # one block, full blocks, and a rest
    exact = both_ways(plain, T, torch.float64)
    for one, other in zip(both_ways(causal_attention, T, torch.float32), exact, strict=True):
        assert (one - other).abs().max() <= 2e-6 * other.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("T", [16, 64, 300])
def test_bf16_stays_as_near_to_fp32_as_torchs_does(T: int) -> None:
    exact = both_ways(plain, T, torch.float64)
    ours = both_ways(causal_attention, T, torch.bfloat16)
    theirs = both_ways(plain, T, torch.bfloat16)
    for one, other, right in zip(ours, theirs, exact, strict=True):
        assert (one - right).norm() <= max(1.5 * (other - right).norm(), 4e-3 * right.norm())


def test_the_model_is_the_same_with_it() -> None:
    model = sharpen(GPT(SHAPE))
    idx = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(3))

    def gradients() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        _, loss = model(idx, idx.roll(-1, 1))
        assert loss is not None
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    (loss, expected), names = gradients(), list(model.state_dict())
    attend_in_blocks(model)
    ours, got = gradients()
    torch.testing.assert_close(ours, loss, rtol=1e-6, atol=0.0)
    assert (got - expected).norm() <= 1e-6 * expected.norm()
    assert list(model.state_dict()) == names


def test_a_cache_and_dropout_go_the_models_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(qkv: Tensor, n_head: int) -> Tensor:
        raise AssertionError("blocks were used")

    monkeypatch.setattr(module, "causal_attention", refuse)
    idx = torch.zeros(1, 4, dtype=torch.int64)
    model = attend_in_blocks(GPT(SHAPE)).eval()
    with pytest.raises(AssertionError, match="blocks were used"):
        model(idx)
    with torch.no_grad():
        model(idx, cache=KeyValueCache(model.config, rows=1, length=8))
    dropping = GPT(GPTConfig(**{**vars(SHAPE), "dropout": 0.5}))
    attend_in_blocks(dropping.train())(idx)


def test_the_long_way_keeps_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    kept: list[int] = []

    def weigh(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    qkv = torch.randn(1, 32, 3 * C, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        causal_attention(qkv, HEADS)
    assert kept == [qkv.numel()]


@pytest.mark.parametrize(("queries", "start"), [(256, 0), (100, 0), (211, 256), (1, 70_000)])
def test_the_softmax_in_c_is_torchs(queries: int, start: int) -> None:
    keys = start + queries
    draw = torch.Generator().manual_seed(keys)
    scores = (3 * torch.randn(8, queries, keys, generator=draw)).bfloat16()
    dP = torch.randn(8, queries, keys, generator=draw).bfloat16()
    future = torch.ones(queries, keys, dtype=torch.bool).triu(start + 1)
    expected = scores.float().masked_fill(future, -torch.inf).softmax(-1)
    assert module.fits_kernel(scores)
    P = native.causal_softmax(scores.clone(), start)
    assert ((P - expected).abs() <= 2**-8 * expected + 1e-38).all()
    p = P.float()
    slope = p * (dP.float() - (p * dP.float()).sum(-1, keepdim=True))
    dS = native.causal_softmax_backward(P, dP.clone(), start)
    assert ((dS - slope).abs() <= 2**-8 * slope.abs() + 1e-6 * p).all()
    assert (dS[:, future] == 0).all()


def test_scores_that_are_not_finite_are_not_hidden() -> None:
    scores = torch.zeros(1, 256, 256).bfloat16()
    scores[0, 200, 3], scores[0, 100, 200] = float("nan"), float("nan")  # the second is not seen
    assert module.fits_kernel(scores)
    P = native.causal_softmax(scores, 0)
    assert P[0, 200, 3].isnan()
    assert P[0, :200].isfinite().all()
