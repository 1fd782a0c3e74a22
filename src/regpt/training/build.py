"""A run from its configuration: the one place where core and fast meet.

The model, the loss and the optimizer are core's; what makes them faster on this machine is put in
from outside, here.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from regpt.core.model import GPT
from regpt.core.train import Hooks, StepSettings
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
from regpt.training.compiling import compiles
from regpt.training.config import RunConfig
from regpt.training.distributed import GradientSum, checkpoint_activations, pad_vocabulary, shard
from regpt.training.state import TrainState
from regpt.training.training_data import compact_data, read_data


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
    if compiles(config, runtime.device):
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


def uses_blocked_attention(config: RunConfig, runtime: Runtime) -> bool:
    """Whether attention goes by blocks: measured faster on a CPU in bf16, not in fp32."""
    if config.attention == "auto":
        cpu = runtime.device.type == "cpu"
        low = runtime.dtype == torch.bfloat16
        return cpu and low and not compiles(config, runtime.device)
    return config.attention == "blocks"


def uses_bf16_weights(config: RunConfig, runtime: Runtime, world: World) -> bool:
    """Whether matrices keep bfloat16 copies: on one CPU, in bf16."""
    cpu = runtime.device.type == "cpu" and runtime.dtype == torch.bfloat16
    alone = cpu and world.size == 1
    return config.keep_copies and alone and not compiles(config, runtime.device)


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
