"""One model on many processes: two ways to spread it, both applied from outside.

- `GradientSum` (the default, what DDP does, without a wrapper class): every process holds the model
  and its share of the global batch; gradients are summed while backward runs.
- `shard` (FSDP2, `fully_shard` on a replicate x shard mesh): parameters, gradients and optimizer
  state are cut over the processes.

Sums, never means: a loss is divided by the targets of the whole global batch before backward, so
adding up the processes' gradients gives the gradient of that batch exactly, however it was split.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regpt.core.model import GPT
from regpt.system.distributed import World
from regpt.system.errors import UserError

BUCKET_ELEMENTS = 8 << 20
"""Gradients are summed in buckets of about this many numbers (32 MB in float32)."""


class GradientSum:
    """Sums gradients over the processes, in buckets, while backward runs.

    They are gathered as backward forms them, which is in the same order everywhere; a full bucket
    is on its way while earlier layers still compute. Outside `collecting` nothing is sent.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.active = False
        self.bucket: list[Tensor] = []
        """Parameters whose gradients wait to be sent."""
        self.sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        if world.size > 1:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._ready)

    def _ready(self, parameter: Tensor) -> None:
        if self.active:
            if sum(map(torch.numel, self.bucket)) + parameter.numel() > BUCKET_ELEMENTS:
                self._send()
            self.bucket.append(parameter)

    def _send(self) -> None:
        gradients = [p.grad.flatten() for p in self.bucket if p.grad is not None]
        if gradients:
            joined = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
            work = dist.all_reduce(joined, async_op=True)
            assert work is not None
            self.sent.append((self.bucket, joined, work))
            self.bucket = []

    @contextlib.contextmanager
    def collecting(self, last: bool) -> Iterator[None]:
        """Around one micro-batch's backward; `last` starts the sums and waits for them."""
        self.active = last
        yield
        self.active = False
        self._send()
        for parameters, joined, work in self.sent:
            work.wait()
            pieces = joined.split([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        self.sent.clear()


def shard(model: GPT, world: World, *, replicas: int) -> None:
    """Cut the model over the processes (FSDP2): `replicas` copies, each over size / replicas."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if world.size == 1:
        return
    if world.size % replicas:
        raise UserError(f"{world.size} processes cannot form {replicas} replicas: use a divisor")
    mesh = init_device_mesh(
        world.device.type,
        (replicas, world.size // replicas),
        mesh_dim_names=("replicate", "shard"),
    )
    if replicas == 1:
        mesh = mesh["shard"]
    for block in model.h:
        fully_shard(block, mesh=mesh)
    # The head uses wte after `hidden` has returned, so the root stays whole until backward.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, as everywhere,
            module.set_force_sum_reduction_for_comms(True)  # by a reduction gloo has too


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded, and may have rows of padding: zeros."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if tensor.ndim and len(whole) < len(tensor):
        padding = whole.new_zeros(len(tensor) - len(whole), *whole.shape[1:])
        whole = torch.cat([whole, padding])
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(whole)


def checkpoint_activations(model: GPT) -> None:
    """Keep only the blocks' inputs for backward and compute the rest again: less memory, slower."""
    for block in model.h:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@torch.no_grad()
def pad_vocabulary(model: GPT) -> None:
    """Add rows of zeros to the token embedding so that its size suits the matrix units.

    The model cuts the extra logits off (`GPT.unembed`), so the rows get no gradient and stay zero;
    `write_model` does not write them. 50257 becomes 50304.
    """
    rows = -model.config.vocab_size % 64
    if rows and len(model.wte.weight) == model.config.vocab_size:
        zeros = model.wte.weight.new_zeros(rows, model.config.n_embd)
        model.wte.weight = nn.Parameter(torch.cat([model.wte.weight, zeros]))
