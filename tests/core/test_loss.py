"""The chunked loss is the plain loss: value and gradients, in fp32 and bf16."""

import pytest
import torch
import torch.nn.functional as F
from test_model import sharpen

from regpt import GPT, GPTConfig
from regpt.core import loss as module
from regpt.core.loss import next_token_loss
from regpt.training.distributed import pad_vocabulary

SHAPE = GPTConfig(block_size=16, vocab_size=61, n_layer=1, n_head=2, n_embd=16)


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    idx = torch.randint(0, 61, (rows, 16), generator=torch.Generator().manual_seed(1))
    targets = idx.roll(-1, 1)
    targets[-1, 9:] = -100
    return idx, targets


def plain_loss(
    model: GPT, idx: torch.Tensor, targets: torch.Tensor, *, divisor: float = 1.0
) -> torch.Tensor:
    """Summed cross-entropy / divisor through all logits at once: the reference."""
    logits = model(idx)[0].flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), reduction="sum") / divisor


def gradients(model: GPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    whole = torch.cat([tensor.flatten() for tensor in other.values()]).norm()
    return max(((one[name] - other[name]).norm() / whole).item() for name in one)


@pytest.mark.parametrize("chunk", [1, 7, 48, 1024])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_plain_loss(monkeypatch: pytest.MonkeyPatch, chunk: int, padded: bool) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda columns: chunk)
    monkeypatch.setattr(module, "CACHED_ROWS", 5)
    model = sharpen(GPT(SHAPE))
    if padded:
        pad_vocabulary(model)
    idx, targets = batch()
    plain = plain_loss(model, idx, targets, divisor=41.0)
    fast = next_token_loss(model, idx, targets, divisor=41.0)
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=0.0)
    assert worst(gradients(model, fast), gradients(model, plain)) <= 1e-6


def test_bf16_stays_as_near_to_fp32_as_the_plain_path_does() -> None:
    model = sharpen(GPT(SHAPE))
    idx, targets = batch()
    exact = gradients(model, plain_loss(model, idx, targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = plain_loss(model, idx, targets)
        fast = next_token_loss(model, idx, targets)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, plain, rtol=2e-3, atol=0.0)
    plain_error = worst(gradients(model, plain), exact)
    assert worst(gradients(model, fast), exact) <= max(1.5 * plain_error, 0.02)


def test_the_mean_over_targets_is_the_models_loss() -> None:
    model = GPT(SHAPE)
    idx, targets = batch()
    _, mean = model(idx, targets)
    assert mean is not None
    torch.testing.assert_close(next_token_loss(model, idx, targets, divisor=48 - 7), mean)


def test_a_hopeless_target_has_a_finite_loss() -> None:
    model = sharpen(GPT(SHAPE), 4.0)
    idx, targets = batch()
    fast = next_token_loss(model, idx, targets)
    assert fast.item() > 41 * 90, "some probabilities must underflow float32"
    torch.testing.assert_close(fast, plain_loss(model, idx, targets), rtol=1e-6, atol=0.0)


def test_the_gradient_of_the_loss_is_passed_on() -> None:
    model = sharpen(GPT(SHAPE))
    idx, targets = batch()
    single = gradients(model, next_token_loss(model, idx, targets))
    triple = gradients(model, 3 * next_token_loss(model, idx, targets))
    assert worst({name: tensor / 3 for name, tensor in triple.items()}, single) <= 1e-6


def test_without_gradients_none_are_formed() -> None:
    model = sharpen(GPT(SHAPE))
    idx, targets = batch()
    with torch.no_grad():
        assert not next_token_loss(model, idx, targets).requires_grad
