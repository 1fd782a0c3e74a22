"""The fast optimizers step as torch's do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_optimizer import with_gradients

from regpt import GPT, GPTConfig
from regpt.core.optimizer import Optimizer as Plain
from regpt.core.optimizer import OptimizerConfig
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training import muon
from regpt.fast.training.bf16_weights import keep_bf16_weights, shadow_of
from regpt.fast.training.optimizer import FastOptimizer as Optimizer
from regpt.training.distributed import fill
from regpt.training.state import load_state_tensors, state_tensors

TINY = GPTConfig(block_size=8, vocab_size=40, n_layer=2, n_head=2, n_embd=16)


def three_iterations(*optimizers: Plain) -> None:
    """Newton-Schulz iterations, so that roundings stay below the tests' bounds."""
    for optimizer in optimizers:
        assert optimizer.muon is not None
        for group in optimizer.muon.param_groups:
            group["ns_steps"] = 3


@pytest.mark.parametrize(("together", "alone"), [(1 << 22, 1 << 19), (2048, 1024), (256, 256)])
def test_stacked_muon_is_torchs(monkeypatch: pytest.MonkeyPatch, together: int, alone: int) -> None:
    monkeypatch.setattr(muon, "STACK_NUMBERS", together)
    monkeypatch.setattr(muon, "ALONE", alone)
    torch.manual_seed(1)
    model, reference = GPT(TINY), GPT(TINY)
    reference.load_state_dict(model.state_dict())
    rule = OptimizerConfig(name="muon", muon_lr=0.1)
    ours = Optimizer(model, rule, lr=3e-3)
    theirs = Plain(reference, rule, lr=3e-3)
    three_iterations(ours, theirs)
    for _ in range(3):
        ours.zero_grad()
        with_gradients(model)
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        # products in bfloat16: a step of 0.1 may differ by a rounding, 2^-8 of itself
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0.0, msg=name)
    one, other = (state_tensors(optimizer, torch.clone) for optimizer in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=name)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(muon, "WORTH_COMPILING", 0)


def group(*, steps: int, **settings: float) -> dict[str, Any]:
    """A parameter group of `torch.optim.Muon`."""
    return {"ns_coefficients": (3.4445, -4.7750, 2.0315), "ns_steps": steps, "eps": 1e-7} | settings


def exactly(matrix: torch.Tensor, polynomials: list[tuple[float, float, float]]) -> torch.Tensor:
    """Newton-Schulz in float64."""
    X = matrix.double() / matrix.double().norm()
    for a, b, c in polynomials:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (160, 32), (96, 288), (576, 64)])
@pytest.mark.parametrize("low", [True, False])
def test_the_kernel_is_as_near_as_torchs_products(
    kernel: None, shape: tuple[int, int], low: bool
) -> None:
    draw = torch.Generator().manual_seed(sum(shape))
    gradient, average, weight = (torch.randn(shape, generator=draw) for _ in range(3))
    gradient = gradient.bfloat16()
    polynomials = [(3.4445, -4.7750, 2.0315)] * 5
    scale = 0.5 if low else 1.0
    momentum = average.lerp(gradient.float() * scale, 1 - 0.95)
    aim = (gradient.float() * scale).lerp(momentum, 0.95).bfloat16()
    right = exactly(aim, polynomials)
    theirs = muon.orthogonalize([aim], polynomials, 1e-7)[0]
    before, copy = weight.clone(), torch.empty(shape, dtype=torch.bfloat16)
    muon.step(
        [
            muon.Step(
                weight=weight,
                gradient=gradient if low else gradient.float(),
                average=average,
                copy=copy,
            )
        ],
        group(steps=5, momentum=0.95, nesterov=True, lr=0.5, weight_decay=0.1),
        scale=0.5,
    )
    torch.testing.assert_close(average, momentum, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy, weight.bfloat16())
    update = (before * (1 - 0.5 * 0.1) - weight) / 0.5 / max(1.0, shape[0] / shape[1]) ** 0.5
    assert (update - right).norm() <= max(1.5 * (theirs - right).norm(), 5e-3 * right.norm())


def test_matrices_do_not_know_of_each_other_nor_of_threads(kernel: None) -> None:
    shapes = [(64, 32), (32, 32), (96, 32), (32, 128), (32, 32)]

    def stepped(groups: list[list[int]], threads: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        steps = []
        for shape in shapes:
            weight, gradient = (torch.randn(shape, generator=draw) for _ in range(2))
            average = torch.zeros(shape)
            steps.append(muon.Step(weight=weight, gradient=gradient, average=average))
        torch.set_num_threads(threads)
        for indices in groups:
            muon.step(
                [steps[index] for index in indices],
                group(steps=2, momentum=0.9, nesterov=False, lr=0.1, weight_decay=0.0),
                scale=1.0,
            )
        return [each.weight for each in steps]

    threads = torch.get_num_threads()
    try:
        alone = stepped([[0], [1], [2], [3], [4]], 1)
        together = stepped([[0, 1, 2, 3, 4]], 2)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_muon_with_the_kernel_is_muon_without(
    kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = OptimizerConfig(name="muon", muon_lr=0.1)
    torch.manual_seed(1)
    fast, slow = (GPT(replace(TINY, n_embd=32)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    ours, theirs = (Optimizer(keep_bf16_weights(model), rule, lr=3e-3) for model in (fast, slow))
    three_iterations(ours, theirs)
    for _ in range(3):
        ours.zero_grad()
        with_gradients(fast)
        for one, other in zip(fast.parameters(), slow.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()
        ours.step()
        with monkeypatch.context() as patch:
            patch.setattr(muon, "unavailable_reason", lambda *group: "none here")
            theirs.step()
    for (name, one), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=4e-3, rtol=0.0, msg=name)
        copy, left = shadow_of(one), shadow_of(other)
        if copy is not None and left is not None:
            assert copy.version == one._version, "the kernel wrote the copy"
            assert torch.equal(copy.tensor[: len(one)], one.bfloat16()), name
            assert (left.version == other._version) == (not name.startswith("h.")), name
    one, other = (state_tensors(optimizer, torch.clone) for optimizer in (ours, theirs))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_a_checkpoint_of_either_muon_continues_with_the_other() -> None:
    model = with_gradients(GPT(TINY))
    rule = OptimizerConfig(name="muon")
    ours = Optimizer(model, rule, lr=3e-3)
    ours.step()
    theirs = Plain(model, rule, lr=3e-3)
    load_state_tensors(theirs, state_tensors(ours, torch.clone), fill)
    for name, tensor in state_tensors(theirs, torch.clone).items():
        assert torch.equal(tensor, state_tensors(ours, torch.clone)[name]), name


def test_more_iterations_bring_singular_values_nearer_to_one() -> None:
    matrix = torch.randn(1, 24, 40, generator=torch.Generator().manual_seed(0))
    matrix *= torch.logspace(0, -1.5, 24)[:, None]  # some directions matter little

    def spread(polynomials: list[tuple[float, float, float]]) -> float:
        update = muon.orthogonalize(matrix, polynomials, 1e-7)
        return (torch.linalg.svdvals(update[0].float()) - 1).abs().max().item()

    same = [spread([(3.4445, -4.7750, 2.0315)] * iterations) for iterations in (1, 3, 5)]
    assert same[0] > same[1] > same[2]
    assert same[2] < 0.4
