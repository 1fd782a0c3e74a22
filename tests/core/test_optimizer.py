"""The optimizer touches every parameter once, by the right rule."""

import math
from dataclasses import replace

import pytest
import torch

from regpt import GPT, GPTConfig, UserError
from regpt.core.optimizer import Optimizer, OptimizerConfig, split_parameters

TINY = GPTConfig(block_size=8, vocab_size=40, n_layer=2, n_head=2, n_embd=16)


def with_gradients(model: GPT) -> GPT:
    idx = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(4))
    _, loss = model(idx, idx.roll(-1, 1))
    assert loss is not None
    loss.backward()
    return model


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(name: str) -> None:
    model = GPT(TINY)
    hidden, decayed, plain = split_parameters(model, OptimizerConfig(name=name))
    assert len(hidden) == (8 if name == "muon" else 0)
    assert {id(p) for p in [*hidden, *decayed, *plain]} == {id(p) for p in model.parameters()}
    assert len(hidden) + len(decayed) + len(plain) == len(list(model.parameters()))
    assert all(p.ndim == 1 for p in plain)


def test_adamw_is_torchs() -> None:
    torch.manual_seed(1)
    model, reference = GPT(TINY), GPT(TINY)
    reference.load_state_dict(model.state_dict())
    ours = Optimizer(
        model, OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.01, decay="all"), lr=3e-4
    )
    theirs = torch.optim.AdamW(reference.parameters(), lr=3e-4)
    for _ in range(3):
        ours.zero_grad()
        with_gradients(model)
        ours.step()
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.grad = one.grad.clone()
        theirs.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_muon_treats_q_k_and_v_apart() -> None:
    model = GPT(TINY)
    matrix = model.h[0].attn.c_attn.weight
    before = matrix.detach().clone()
    config = OptimizerConfig(name="muon", weight_decay=0.0, muon_lr=0.1)
    optimizer = Optimizer(model, config, lr=1e-3)
    with_gradients(model)
    expected = []
    for part, grad in zip(before.split(16), matrix.grad.split(16), strict=True):
        alone = torch.nn.Parameter(part.clone())
        alone.grad = grad.clone()
        torch.optim.Muon([alone], lr=0.1, momentum=0.95, nesterov=True, weight_decay=0.0).step()
        expected.append(alone.detach())
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.cat(expected))
    assert not torch.equal(model.wte.weight, torch.zeros(()))


def test_the_factor_scales_every_learning_rate() -> None:
    optimizer = Optimizer(GPT(TINY), OptimizerConfig(name="muon"), lr=1e-3)
    optimizer.set_factor(0.25)
    rates = {group["lr"] for group in optimizer.groups()}
    assert rates == {0.25e-3, 0.005}


def test_clipping_reports_the_norm_before_and_scales_to_the_limit() -> None:
    model = with_gradients(GPT(TINY))
    optimizer = Optimizer(model, OptimizerConfig(), lr=1e-3)
    norm = optimizer.clip(None)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    torch.testing.assert_close(norm, expected)
    assert optimizer.clip(float(norm) / 4).item() == pytest.approx(norm.item())
    assert optimizer.clip(None).item() == pytest.approx(norm.item() / 4, rel=1e-4)


def test_muon_may_decay_by_another_rate() -> None:
    rule = OptimizerConfig(name="muon", weight_decay=0.5, muon_weight_decay=0.0)
    decays = [group["weight_decay"] for group in Optimizer(GPT(TINY), rule, lr=1e-3).groups()]
    assert decays == [0.5, 0.0, 0.0]  # AdamW's matrices, its vectors, Muon
    rule = replace(rule, muon_weight_decay=None)
    decays = [group["weight_decay"] for group in Optimizer(GPT(TINY), rule, lr=1e-3).groups()]
    assert decays == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("muon_momentum", -math.inf),
        ("muon_momentum", 1.0),
        ("betas", (0.9, math.nan)),
        ("weight_decay", math.nan),
        ("muon_weight_decay", -0.1),
        ("muon_lr", math.inf),
        ("epsilon", -1e-8),
        ("clip", 0.0),
    ],
)
def test_what_no_optimizer_takes_is_one_line(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^optimizer\.{field} must .*, got "):
        OptimizerConfig(**{field: value})  # pyright: ignore[reportArgumentType]
