"""What `regpt bench train` times, each in its worker: one call is one optimisation step.

All take the same batches in the same order and do the same update (AdamW as the lecture calls it:
only the learning rate is given, nothing is clipped), and none has dropout.

- `ours`: the trainer's own state, gradients and optimizer, as `regpt train` runs them;
- `lecture`: the lecture's loop around the plain model: all logits, `F.cross_entropy`,
  `torch.optim.AdamW`; `compiled` is its last stage on a GPU: TF32, `torch.compile`, fused AdamW,
  a vocabulary of 50,304;
- `transformers`: GPT2LMHeadModel in the same loop.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regpt.bench.worker import Call
from regpt.core.data import Batch
from regpt.core.model import GPT, GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import factor
from regpt.core.train import compute_gradients
from regpt.system.distributed import World
from regpt.system.runtime import Runtime, find_device, find_runtime
from regpt.training.build import StateHooks, build
from regpt.training.config import RunConfig
from regpt.training.distributed import pad_vocabulary
from regpt.training.nonfinite import nonfinite_reason
from regpt.training.training_data import read_data
from regpt.weights.config import hugging_face_config

OPTIMIZER = OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.01, decay="all", clip=None)
"""torch's AdamW as it is called with a learning rate alone."""
LEARNING_RATE = 3e-4
ENDLESS = 10_000
WARM_TOKENS = 32


def configure(
    *,
    shape: Mapping[str, int],
    dtype: Literal["fp32", "tf32", "bf16"],
    batch_size: int,
    block_size: int,
    device: str,
    data: list[str],
) -> RunConfig:
    """The run that is timed: what a job and a machine ask of a system. `shape`: GPTConfig's."""
    return RunConfig(
        data=tuple(data),
        steps=ENDLESS,
        batch_size=batch_size,
        block_size=block_size,
        lr=LEARNING_RATE,
        device=device,
        dtype=dtype,
        order="sequential",
        compile=torch.device(device).type == "cuda",  # as the large presets do
        model=GPTConfig(**shape),
        optimizer=OPTIMIZER,
    ).with_batch_tokens(1)


def corner(batch: Batch) -> Batch:
    """A little of a batch: a step on it makes the optimizer's state, at almost no cost."""
    x, y = batch.x[:1, :WARM_TOKENS], batch.y[:1, :WARM_TOKENS]
    return Batch(batch.step, x, y, y.numel())


def stepping(step: Callable[[Batch], float], batches: Iterator[Batch], runtime: Runtime) -> Call:
    """One step a call, after warming up: on a GPU in full, for what is compiled and captured."""
    first = next(batches)
    for batch in [first] * 3 if runtime.device.type == "cuda" else [corner(first)]:
        step(batch)
    return lambda: {"loss": step(next(batches))}


def ours(**settings: Any) -> Call:
    config = configure(**settings)
    runtime = find_runtime(config.device, dtype=config.dtype)
    state = build(config, runtime, World(device=runtime.device))

    def step(batch: Batch) -> float:
        state.optimizer.set_factor(factor(state.step, state.config.steps, state.config.schedule))
        result = compute_gradients(
            state.model, state.optimizer, batch, state.settings, StateHooks(state)
        )
        fault = nonfinite_reason(result)
        if fault is not None:
            raise RuntimeError(fault)
        state.optimizer.step()
        state.step += 1
        return result.loss

    batches = state.data.loader.batches(0, ENDLESS, device=runtime.device)
    return stepping(step, batches, runtime)


def plain_loop(
    config: RunConfig,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    fused: bool = False,
) -> Call:
    runtime = find_runtime(config.device, dtype=config.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=fused or None)
    loader = read_data(config, World(device=runtime.device)).loader

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        with runtime.autocast():
            loss = loss_of(batch.x, batch.y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return stepping(step, loader.batches(0, ENDLESS, device=runtime.device), runtime)


def lecture(*, compiled: bool = False, backend: str = "inductor", **settings: Any) -> Call:
    """The lecture's script at its first training stage, or (`compiled`, by torch's `backend`) at
    its last."""
    config = configure(**settings)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(find_device(config.device)).train()
    if compiled:
        torch.set_float32_matmul_precision("high")
        pad_vocabulary(model)
        model.compile(backend=backend)
    return plain_loop(config, model, lambda x, y: model(x, y)[1], fused=compiled)


def transformers(**settings: Any) -> Call:
    """transformers' GPT-2; it shifts its labels itself, so a sequence has one target less."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = configure(**settings)
    shape = hugging_face_config(asdict(config.model), dtype="float32")
    theirs = GPT2Config.from_dict(shape | {"use_cache": False})
    torch.manual_seed(config.seed)
    model = nn.Module.to(GPT2LMHeadModel(theirs), find_device(config.device)).train()
    return plain_loop(config, model, lambda x, y: model(input_ids=x, labels=x).loss)
