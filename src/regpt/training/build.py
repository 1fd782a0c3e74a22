"""A run from its configuration: the one place where core and fast meet.

The model, the loss and the optimizer are core's; what makes them faster on this machine is put in
from outside, here.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from regpt.core.data import Batch
from regpt.core.model import GPT
from regpt.core.train import Hooks, StepResult, StepSettings, compute_gradients
from regpt.datasets.corpus import Say, silent
from regpt.fast.training.bf16_weights import gradients_in, keep_bf16_weights
from regpt.fast.training.blocked_attention import attend_in_blocks
from regpt.fast.training.compact_vocabulary import compact
from regpt.fast.training.fused_block import fuse_blocks
from regpt.fast.training.fused_loss import next_token_loss
from regpt.fast.training.optimizer import FastOptimizer
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.runtime import Runtime
from regpt.training.config import RunConfig
from regpt.training.distributed import GradientSum, checkpoint_activations, pad_vocabulary, shard
from regpt.training.state import TrainState
from regpt.training.training_data import compact_data, read_data

COMPILE_PAYS_FROM = 500
"""Steps of a run."""


def build(config: RunConfig, runtime: Runtime, world: World, *, say: Say = silent) -> TrainState:
    """Everything a run needs, from its configuration; touches no file but the data.

    `say` is told how far a large text is.
    """
    check_shares(config, world)
    data = read_data(config, world, say=say)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    if config.zero_projections:
        zero_projections(model)
    vocabulary = None
    if config.compact_vocabulary:
        data, vocabulary = compact_data(data, config.model.vocab_size)
        if vocabulary is not None:
            model = compact(model, vocabulary)
    pads = config.pad_vocabulary
    if pads or (pads is None and runtime.device.type == "cuda"):
        pad_vocabulary(model)
    if uses_blocked_attention(config, runtime):
        attend_in_blocks(model)
    if uses_bf16_weights(config, runtime, world):
        keep_bf16_weights(model)
        if uses_blocked_attention(config, runtime):
            fuse_blocks(model)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if decide_compile(config, runtime.device)[0]:
        for block in model.h:
            block.compile()
    summing = world
    if config.shard:
        shard(model, world, replicas=config.replicas)
        summing = World(device=runtime.device)  # FSDP sums by itself
    return TrainState(
        config=config,
        runtime=runtime,
        world=world,
        data=data,
        model=model,
        vocabulary=vocabulary,
        optimizer=FastOptimizer(model, config.optimizer, lr=config.lr),
        gradient_sum=GradientSum(model, summing),
        settings=StepSettings(
            micro_batch=config.batch_size,
            clip=config.optimizer.clip,
            loss_fn=next_token_loss,
            autocast=runtime.autocast,
        ),
    )


def decide_compile(config: RunConfig, device: torch.device) -> tuple[bool, str]:
    """Whether a run compiles its blocks, and why.

    torch.compile takes about a minute before the first step, which pays in long runs on a GPU (the
    number of steps is an estimate: not measured here, no device). Off a GPU the fused block and
    blocked attention do that work. The whole run decides, not what is left of it, so a resumed run
    decides as before.
    """
    if config.compile is not None:
        return config.compile, "as asked for"
    if device.type != "cuda":
        return False, "off a GPU the project's own kernels stand in"
    if config.steps < COMPILE_PAYS_FROM:
        text = f"{config.steps:,} steps are over before it has paid"
        return False, f"{text} (from {COMPILE_PAYS_FROM} on)"
    return True, f"{config.steps:,} steps, it pays from {COMPILE_PAYS_FROM} on"


def uses_own_kernels(config: RunConfig, runtime: Runtime) -> bool:
    """Whether blocks are computed by this project's operators: on a CPU in bf16, not compiled."""
    cpu = runtime.device.type == "cpu" and runtime.dtype == torch.bfloat16
    return cpu and not decide_compile(config, runtime.device)[0]


def uses_blocked_attention(config: RunConfig, runtime: Runtime) -> bool:
    """Whether attention is computed in blocks: measured faster on a CPU in bf16, not in fp32."""
    if config.attention == "auto":
        return uses_own_kernels(config, runtime)
    return config.attention == "blocks"


def uses_bf16_weights(config: RunConfig, runtime: Runtime, world: World) -> bool:
    """Whether matrices have bfloat16 copies beside them: only of one process."""
    return world.size == 1 and uses_own_kernels(config, runtime)


@torch.no_grad()
def zero_projections(model: GPT) -> None:
    """Zeros where a block adds to the residual stream; they grow in the first steps."""
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            parameter.zero_()


def check_shares(config: RunConfig, world: World) -> None:
    """Refuse shares of a batch that would let one sharded process wait for another for ever."""
    sequences = config.sequences(world.size)
    if config.shard and sequences % world.size:
        raise UserError(
            f"a batch of {sequences} sequences is not a multiple of {world.size} processes, and "
            f"shard needs equal shares: use --batch-tokens {world.size * config.block_size} times N"
        )


class StateHooks(Hooks):
    """What every computation of a run's gradients needs, in training and in a replay."""

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def before_backward(self, num_micro_batches: int) -> None:
        """Seed the dropout, a function of (seed, step, process); choose the gradients' dtype."""
        state = self.state
        if state.config.model.dropout:
            place = (state.config.seed * 1_000_003 + state.step) * 65_537 + state.world.rank
            torch.manual_seed(place % 2**63)
        gradients_in(state.model, bfloat16=num_micro_batches == 1 and state.world.size == 1)

    def backward(self, *, last: bool) -> AbstractContextManager[None]:
        """Sum the gradients over the processes while the last micro-batch's are formed."""
        return self.state.gradient_sum.collecting(last=last)

    def sum(self, loss: Tensor) -> Tensor:
        """Over all processes."""
        return self.state.world.sum(loss)


def gradients_of(state: TrainState, batch: Batch) -> StepResult:
    """The gradients of a batch, as the run computes them; nothing is applied."""
    return compute_gradients(state.model, state.optimizer, batch, state.settings, StateHooks(state))
