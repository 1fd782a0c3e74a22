"""Kept bfloat16 copies change the traffic, not the numbers: against autocast's own casts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regpt import GPT, GPTConfig, find_runtime
from regpt.core.data import Batch
from regpt.core.optimizer import OptimizerConfig
from regpt.core.train import StepResult, StepSettings, compute_gradients
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training import adamw, fused_loss, muon
from regpt.fast.training import bf16_weights as kept_module
from regpt.fast.training import fused_block as fused
from regpt.fast.training.bf16_weights import add_rows, gradients_in, keep_bf16_weights, shadow_of
from regpt.fast.training.blocked_attention import attend_in_blocks
from regpt.fast.training.fused_block import fuse_blocks
from regpt.fast.training.fused_loss import next_token_loss
from regpt.fast.training.optimizer import FastOptimizer as Optimizer
from regpt.system.distributed import World
from regpt.training.distributed import fill
from regpt.training.state import load_state_tensors, state_tensors

SHAPE = GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16)
RUNTIME = find_runtime("cpu", dtype="bf16")
WORLD = World(device=RUNTIME.device)
ADAMW = OptimizerConfig()
MUON = OptimizerConfig(name="muon", clip=0.5)


def two_models() -> tuple[GPT, GPT]:
    """The same numbers, without and with kept copies."""
    torch.manual_seed(0)
    plain, kept = GPT(SHAPE), GPT(SHAPE)
    kept.load_state_dict(plain.state_dict())
    return plain, keep_bf16_weights(kept)


def batch(step: int = 0) -> Batch:
    idx = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(step))
    targets = idx.roll(-1, 1)
    targets[-1, 9:] = -100
    return Batch(step, idx, targets, 64 - 7)


def gradients(
    model: GPT, optimizer: Optimizer, data: Batch, *, micro_batch: int = 4, clip: float | None = 1.0
) -> StepResult:
    gradients_in(model, bfloat16=micro_batch == len(data.x))
    settings = StepSettings(
        micro_batch=micro_batch, clip=clip, loss_fn=next_token_loss, autocast=RUNTIME.autocast
    )
    return compute_gradients(model, optimizer, data, settings)


def of(model: GPT) -> dict[str, Tensor]:
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[True, False], ids=["grad_dtype", "torch 2.11"])
def may_be_low(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether gradients may be left in bfloat16; older torch has no `grad_dtype`."""
    if request.param and not kept_module.MAY_BE_LOW:
        pytest.skip("this torch has no grad_dtype")
    monkeypatch.setattr(kept_module, "MAY_BE_LOW", request.param)
    return request.param


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_the_same_gradients(micro_batch: int, may_be_low: bool) -> None:
    plain, kept = two_models()
    results = [
        gradients(m, Optimizer(m, ADAMW, lr=1e-3), batch(), micro_batch=micro_batch, clip=None)
        for m in (plain, kept)
    ]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=4e-3)
    low = torch.bfloat16 if micro_batch == 4 and may_be_low else torch.float32
    expected = of(plain)
    for name, parameter in kept.named_parameters():
        assert parameter.grad.dtype == (low if shadow_of(parameter) else torch.float32), name
        # the embedding's rows are rounded once more, biases once less
        difference = (parameter.grad.float() - expected[name]).norm()
        assert difference <= 3e-3 * expected[name].norm(), name


@pytest.mark.parametrize("config", [ADAMW, MUON])
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_training_is_the_same(
    monkeypatch: pytest.MonkeyPatch, config: OptimizerConfig, piece: int, may_be_low: bool
) -> None:
    monkeypatch.setattr(adamw, "PIECE", piece)
    models = two_models()
    optimizers = [Optimizer(model, config, lr=1e-2) for model in models]
    for _ in range(12):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            losses.append(gradients(model, optimizer, batch(), clip=config.clip).loss)
            optimizer.step()
        assert losses[1] == pytest.approx(losses[0], rel=3e-3)
    assert losses[0] < 3.0, "nothing was learnt"
    plain, kept = (state_tensors(optimizer, torch.clone) for optimizer in optimizers)
    assert plain.keys() == kept.keys()
    assert plain["step"] == kept["step"] == 12


@pytest.mark.parametrize("compiled", [False, True])
def test_an_adamw_step_of_the_same_gradients_is_torchs(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr(adamw, "PIECE", 100)
    if compiled:
        if reason := unavailable_reason():
            pytest.skip(reason)
        monkeypatch.setattr(adamw, "WORTH_COMPILING", 0)
    plain, kept = two_models()
    optimizers = [Optimizer(model, ADAMW, lr=1e-2) for model in (plain, kept)]
    assert optimizers[1].adamw.native == compiled
    for step in range(3):
        norm = gradients(kept, optimizers[1], batch(step), clip=0.1).grad_norm
        scale = optimizers[1].adamw.scale
        assert scale < 1.0
        before = [  # those in float32 are scaled by now
            p.grad.double().flatten() / (1.0 if p.grad.dtype == torch.bfloat16 else scale)
            for p in kept.parameters()
        ]
        exact = torch.cat(before).norm().item()
        assert norm == pytest.approx(exact, rel=1e-5 if compiled else 4e-3)
        for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
            low = other.grad.dtype == torch.bfloat16
            one.grad = other.grad.float() * (scale if low else 1.0)
        for optimizer in optimizers:
            optimizer.step()
    for (name, one), other in zip(plain.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_a_copy_is_never_stale(config: OptimizerConfig) -> None:
    _, kept = two_models()
    optimizer = Optimizer(kept, config, lr=1e-2)
    for step in range(2):
        gradients(kept, optimizer, batch(step))
        optimizer.step()
        for name, parameter in kept.named_parameters():
            copy = shadow_of(parameter)
            if copy is not None:
                expected = parameter.detach().bfloat16()
                assert torch.equal(copy.fresh()[: len(parameter)], expected), name
    with torch.no_grad():
        kept.wte.weight.fill_(0.5)  # as a checkpoint does that is put back
    copy = shadow_of(kept.wte.weight)
    assert copy is not None
    assert copy.fresh()[:61].eq(0.5).all()
    assert not copy.fresh()[61:].any()


@pytest.mark.parametrize("config", [ADAMW, MUON])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_taken_back_goes_on_as_if_it_had_never_left(
    monkeypatch: pytest.MonkeyPatch, config: OptimizerConfig, compiled: bool
) -> None:
    if compiled:
        if reason := unavailable_reason():
            pytest.skip(reason)
        for module in (adamw, muon, fused_loss, fused):
            monkeypatch.setattr(module, "WORTH_COMPILING", 0)

    def new() -> tuple[GPT, Optimizer]:
        torch.manual_seed(0)
        model = fuse_blocks(keep_bf16_weights(attend_in_blocks(GPT(replace(SHAPE, n_embd=32)))))
        return model, Optimizer(model, config, lr=1e-2)

    def go_on(model: GPT, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            gradients(model, optimizer, batch(step), clip=config.clip)
            optimizer.step()

    (one, whole), (two, before), (other, after) = new(), new(), new()
    go_on(one, whole, range(5))
    go_on(two, before, range(2))
    other.load_state_dict(two.state_dict())
    load_state_tensors(after, state_tensors(before, torch.clone), fill)
    go_on(other, after, range(2, 5))
    for (name, expected), found in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_without_autocast_the_model_is_the_plain_one() -> None:
    plain, kept = two_models()
    for model in (plain, kept):
        _, loss = model(batch().x, batch().y)
        assert loss is not None
        loss.backward()
    expected = of(plain)
    for name, gradient in of(kept).items():
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_repeated_tokens_are_added_up_before_they_are_rounded() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    weight.grad_dtype = torch.bfloat16
    weight.grad = torch.full((3, 2), 256.0, dtype=torch.bfloat16)
    idx = torch.tensor([[1] * 300])
    add_rows(weight, idx, torch.full((1, 300, 2), 0.5))  # one by one, each would be lost
    assert weight.grad.tolist() == [[256.0] * 2, [406.0] * 2, [256.0] * 2]


def test_gradients_go_back_to_float32() -> None:
    _, kept = two_models()
    optimizer = Optimizer(kept, ADAMW, lr=1e-3)
    gradients(kept, optimizer, batch())
    optimizer.zero_grad()
    gradients_in(kept, bfloat16=False)
    gradients(kept, optimizer, batch(), micro_batch=1)
    assert all(p.grad.dtype == torch.float32 for p in kept.parameters())
