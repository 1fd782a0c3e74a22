"""A block as one step of autograd: the block's own values and gradients, as near to exact ones."""

import pytest
import torch
import torch.nn.functional as F
from test_model import sharpen
from torch import Tensor

from packings import kernels
from regpt import GPT, GPTConfig
from regpt.core.kv_cache import KeyValueCache
from regpt.core.loss import next_token_loss
from regpt.fast.kernels import training as native
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training import fused_block as fused
from regpt.fast.training.bf16_weights import keep_bf16_weights
from regpt.fast.training.blocked_attention import attend_in_blocks
from regpt.fast.training.fused_block import fuse_blocks

SHAPE = GPTConfig(block_size=40, vocab_size=61, n_layer=2, n_head=2, n_embd=48)

__all__ = ["kernels"]
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := unavailable_reason():
        pytest.skip(reason)
    monkeypatch.setattr(fused, "WORTH_COMPILING", 0)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, exact: Tensor, error: float) -> None:
    """Within `error` of the norm."""
    assert (found.double() - exact.double()).norm() <= error * exact.double().norm()


@pytest.mark.parametrize("rows", [1, 2, 37])
def test_layer_norm_and_its_gradient(rows: int) -> None:
    x, delta = numbers(rows, 48), numbers(rows, 48, seed=1).bfloat16()
    weight, bias = numbers(48, seed=2), numbers(48, seed=3)
    dy, past = numbers(rows, 48, seed=4).bfloat16(), numbers(rows, 48, seed=5)
    total, value, stats = native.norm(x, weight, bias, 1e-5, delta=delta)
    assert torch.equal(total, x + delta)
    assert torch.equal(native.norm_again(total, stats, weight, bias), value)
    exact = [tensor.double().requires_grad_() for tensor in (total, weight, bias)]
    expected = F.layer_norm(exact[0], (48,), *exact[1:], 1e-5)
    near(value, expected, 3e-3)
    ((expected * dy.double()).sum() + (exact[0] * past.double()).sum()).backward()
    into = torch.empty_like(past)
    rounded, sums = native.norm_backward(dy, total, stats, weight, past, into=into)
    near(into, exact[0].grad, 1e-6)
    assert torch.equal(rounded, into.bfloat16())
    near(sums, torch.stack([exact[1].grad, exact[2].grad, exact[0].grad.sum(0)]), 1e-6)
    native.norm_backward(dy, total, stats, weight, past, into=past)
    assert torch.equal(past, into)
    untouched, _, _ = native.norm(x, weight, bias, 1e-5)
    assert untouched is x


@pytest.mark.parametrize("rows", [1, 37])
def test_gelu_and_its_gradient(rows: int) -> None:
    x = (numbers(rows, 32) * 3).bfloat16()
    x[0, :4] = torch.tensor([0.0, -50.0, 50.0, -1e4])
    dy = numbers(rows, 32, seed=1).bfloat16()
    exact = x.double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.backward(dy.double())
    value = native.gelu(x)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=2**-8, atol=1e-6)
    again, sums = native.gelu_backward(x, dy)
    assert torch.equal(again, value)
    torch.testing.assert_close(dy.double(), exact.grad, rtol=2**-7, atol=1e-6)
    near(sums, exact.grad.sum(0), 1e-6)


def test_sums_over_rows() -> None:
    x = numbers(37, 32)
    rounded, sums = native.rounded_and_summed(x)
    assert torch.equal(rounded, x.bfloat16())
    near(sums, x.double().sum(0), 1e-6)
    near(native.row_sum(rounded), rounded.double().sum(0), 1e-6)
    assert torch.equal(native.add(x, rounded), x + rounded)


def test_rounding_is_torchs() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).mul(65521).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 1e38)]
    x = x[: len(x) // 16 * 16].view(-1, 16)
    assert torch.equal(native.rounded_and_summed(x)[0], x.bfloat16())


def gradients(model: GPT, *, autocast: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    idx = torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = next_token_loss(model, idx, idx.roll(-1, 1))
    loss.backward()
    return loss, {name: p.grad.float().clone() for name, p in model.named_parameters()}


def three_models() -> list[GPT]:
    """The same numbers: plain, kept copies, fused."""
    torch.manual_seed(0)
    models = [sharpen(GPT(SHAPE)) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
        keep_bf16_weights(attend_in_blocks(model))
    fuse_blocks(models[2])
    return models


def test_a_model_stays_as_near_to_fp32_as_the_plain_path_does() -> None:
    plain, kept, whole = three_models()
    exact_loss, exact = gradients(plain, autocast=False)
    kept_loss, theirs = gradients(kept)
    loss, ours = gradients(whole)
    torch.testing.assert_close(loss, exact_loss, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(loss, kept_loss, rtol=2e-3, atol=0.0)
    assert ours.keys() == exact.keys()
    for name, right in exact.items():
        error, other = (ours[name] - right).norm(), (theirs[name] - right).norm()
        assert error <= max(1.5 * other, 5e-3 * right.norm()), name
        assert right.any(), name


def test_it_stands_in_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain, whole = three_models()
    idx = torch.tensor([[5, 6, 7]])
    for model in (plain, whole):
        model.eval()
    with torch.no_grad():
        assert torch.equal(whole(idx)[0], plain(idx)[0]), "fp32 is the model's own"
        cache = KeyValueCache(SHAPE, rows=1, length=8)
        torch.testing.assert_close(whole.hidden(idx, cache), whole.hidden(idx))
    used = []
    monkeypatch.setattr(fused.FusedBlock, "apply", lambda *given: used.append(1) or given[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole(idx)
        assert len(used) == 2
        monkeypatch.setattr(fused, "unavailable_reason", lambda *group: "no compiler")
        whole(idx)
        assert len(used) == 2


def test_a_gradient_that_others_hold_is_left_alone() -> None:
    whole = three_models()[2]
    x = numbers(2, 40, 48).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = whole.h[0](x)
    dy = numbers(2, 40, 48, seed=1)
    before = dy.clone()
    y.backward(dy)
    assert torch.equal(dy, before)
    assert x.grad is not None
