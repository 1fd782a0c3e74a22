"""The chunked loss is the plain loss: value and gradients, in fp32 and bf16."""

import math

import pytest
import torch
from test_model import sharpen

from regpt import GPT, GPTConfig
from regpt.core import loss as module
from regpt.core.loss import next_token_loss, plain_loss
from regpt.fast.kernels.build import missing
from regpt.fast.training.bf16_weights import keep_copies
from regpt.training.distributed import pad_vocabulary

SHAPE = GPTConfig(block_size=16, vocab_size=61, n_layer=1, n_head=2, n_embd=16)


def kernel() -> None:
    if reason := missing():
        pytest.skip(reason)


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    idx = torch.randint(0, 61, (rows, 16), generator=torch.Generator().manual_seed(1))
    targets = idx.roll(-1, 1)
    targets[-1, 9:] = -100
    return idx, targets


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
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
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


@pytest.mark.parametrize("columns", [61, 64, 80])
@pytest.mark.parametrize("vocab_size", [1, 16, 47, 61])
@pytest.mark.parametrize("multiplicity", [1, 39022])
def test_the_kernel_is_the_torch_path(columns: int, vocab_size: int, multiplicity: int) -> None:
    kernel()
    draw = torch.Generator().manual_seed(columns)
    logits = (torch.randn(37, columns, generator=draw) * 4).bfloat16()
    logits[5] *= 40  # probabilities underflow
    targets = torch.randint(0, vocab_size, (37,), generator=draw)
    targets[3] = module.IGNORE
    fast, exact = logits.clone(), logits.double()
    nats = module.to_gradient(logits, targets, vocab_size, multiplicity)
    found = module.to_gradient(fast, targets, vocab_size, multiplicity, native=True)
    torch.testing.assert_close(found, nats, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast, logits, rtol=2**-7, atol=1e-7)  # one rounding apart
    assert not fast[:, vocab_size:].any()
    assert not fast[3].any()
    exact[:, vocab_size - 1] += math.log(multiplicity)
    expected = torch.nn.functional.cross_entropy(
        exact[:, :vocab_size], targets, ignore_index=module.IGNORE, reduction="sum"
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 60])
def test_a_logit_that_is_no_number_is_not_hidden(bad: float, column: int) -> None:
    kernel()
    logits = torch.zeros(2, 61, dtype=torch.bfloat16)
    logits[1, column] = bad
    targets = torch.tensor([3, 4])
    assert not module.to_gradient(logits, targets, 61, native=True).isfinite()


def test_the_loss_through_the_kernel_is_the_loss_without(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()
    model = keep_copies(sharpen(GPT(SHAPE)))
    idx, targets = batch()
    found, used = [], []
    run = module.training.loss
    monkeypatch.setattr(
        module.training, "loss", lambda *given, **named: used.append(1) or run(*given, **named)
    )
    for least in (1 << 20, 0):
        monkeypatch.setattr(module, "WORTH_COMPILING", least)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next_token_loss(model, idx, targets)
        found.append((loss, gradients(model, loss)))
        assert bool(used) == (least == 0)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=0.0)
    assert worst(found[1][1], found[0][1]) <= 1e-3
    used.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        next_token_loss(GPT(SHAPE), idx, targets)
    assert not used, "without kept copies the loss is the plain path's, to the last bit"


def test_nats_alone_leave_the_logits_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()
    logits = (torch.randn(9, 61, generator=torch.Generator().manual_seed(1)) * 4).bfloat16()
    targets = torch.arange(9)
    targets[2] = module.IGNORE
    before = logits.clone()
    plain = module.nats_of(logits, targets)
    monkeypatch.setattr(module, "WORTH_COMPILING", 0)
    assert module.fits_kernel(logits)
    torch.testing.assert_close(module.nats_of(logits, targets), plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)
