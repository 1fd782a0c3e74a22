"""What of an optimizer must survive a stop: its averages, by the names of the parameters."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regpt.core.optimizer import Optimizer


def moments(optimizer: Optimizer) -> Iterator[tuple[str, slice, dict[str, Any]]]:
    """Every state: the parameter's name, the rows of it that are meant, torch's dictionary."""
    for parameter in optimizer.parameters:
        if parameter in optimizer.adamw.state:
            yield optimizer.names[parameter], slice(None), optimizer.adamw.state[parameter]
    for matrix, pieces in optimizer.pieces:
        assert optimizer.muon is not None
        for index, piece in enumerate(pieces):
            rows = slice(index * len(piece), (index + 1) * len(piece))
            yield optimizer.names[matrix], rows, optimizer.muon.state[piece]


def state_tensors(optimizer: Optimizer, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What must survive a stop, by parameter name; `gather` makes a whole copy of a tensor."""
    tensors: dict[str, Tensor] = {}
    for name, _, state in moments(optimizer):
        for key, value in state.items():
            if key == "step":
                tensors["step"] = gather(value)
            elif f"{key}.{name}" in tensors:  # q, k and v of one matrix
                tensors[f"{key}.{name}"] = torch.cat([tensors[f"{key}.{name}"], gather(value)])
            else:
                tensors[f"{key}.{name}"] = gather(value)
    return tensors


def load_state_tensors(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], fill: Callable[[Tensor, Tensor], None]
) -> None:
    """Take back what `state_tensors` gave; `fill` copies a whole tensor into one of ours."""
    make_states(optimizer)
    for name, rows, state in moments(optimizer):
        for key, value in state.items():
            fill(value, tensors["step"] if key == "step" else tensors[f"{key}.{name}"][rows])


def make_states(optimizer: Optimizer) -> None:
    """Let the optimizers create their states, by a step of zero gradients at rate zero."""
    rates = [group["lr"] for group in optimizer.groups()]
    optimizer.set_factor(0.0)
    for parameter in optimizer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.groups(), rates, strict=True):
        group["lr"] = rate
