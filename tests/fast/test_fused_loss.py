"""The loss in one pass of C is the loss in torch's operators."""

import math

import pytest
import torch
from test_loss import SHAPE, batch, gradients, worst
from test_model import sharpen

from regpt import GPT
from regpt.core import loss as plain
from regpt.core.data import IGNORE_INDEX
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training import fused_loss as module
from regpt.fast.training.bf16_weights import keep_bf16_weights
from regpt.fast.training.fused_loss import next_token_loss


def kernel() -> None:
    if reason := unavailable_reason():
        pytest.skip(reason)


@pytest.mark.parametrize("columns", [61, 64, 80])
@pytest.mark.parametrize("vocab_size", [1, 16, 47, 61])
@pytest.mark.parametrize("multiplicity", [1, 39022])
def test_the_kernel_is_the_torch_path(columns: int, vocab_size: int, multiplicity: int) -> None:
    kernel()
    draw = torch.Generator().manual_seed(columns)
    logits = (torch.randn(37, columns, generator=draw) * 4).bfloat16()
    logits[5] *= 40  # probabilities underflow
    targets = torch.randint(0, vocab_size, (37,), generator=draw)
    targets[3] = IGNORE_INDEX
    fast, exact = logits.clone(), logits.double()
    nats = plain.to_gradient(logits, targets, vocab_size, multiplicity)
    found = module.to_gradient(fast, targets, vocab_size, multiplicity)
    torch.testing.assert_close(found, nats, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast, logits, rtol=2**-7, atol=1e-7)  # one rounding apart
    assert not fast[:, vocab_size:].any()
    assert not fast[3].any()
    exact[:, vocab_size - 1] += math.log(multiplicity)
    expected = torch.nn.functional.cross_entropy(
        exact[:, :vocab_size], targets, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 60])
def test_a_logit_that_is_no_number_is_not_hidden(bad: float, column: int) -> None:
    kernel()
    logits = torch.zeros(2, 61, dtype=torch.bfloat16)
    logits[1, column] = bad
    targets = torch.tensor([3, 4])
    assert not module.to_gradient(logits, targets, 61).isfinite()


def test_the_loss_through_the_kernel_is_the_loss_without(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()
    model = keep_bf16_weights(sharpen(GPT(SHAPE)))
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
    targets[2] = IGNORE_INDEX
    before = logits.clone()
    expected = module.token_nll(logits, targets)
    monkeypatch.setattr(module, "WORTH_COMPILING", 0)
    assert module.fits_kernel(logits, logits=logits.numel())
    torch.testing.assert_close(module.token_nll(logits, targets), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)
