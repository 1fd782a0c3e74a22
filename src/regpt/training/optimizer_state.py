"""What of an optimizer must survive a stop: its averages, by the names of the parameters."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from regpt.core.optimizer import Optimizer


def moments(
    optimizer: Optimizer,
) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter, slice]]:
    """Every tensor with a state: name, its optimizer, its parameter, its rows of the name."""
    for parameter in optimizer.parameters:
        if parameter in optimizer.adamw.state:
            yield optimizer.names[parameter], optimizer.adamw, parameter, slice(None)
    for matrix, pieces in optimizer.pieces:
        for index, piece in enumerate(pieces):
            rows = len(piece)
            assert optimizer.muon is not None
            yield (
                optimizer.names[matrix],
                optimizer.muon,
                piece,
                slice(index * rows, (index + 1) * rows),
            )


def state_tensors(optimizer: Optimizer, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What must survive a stop, by parameter name; `gather` makes a whole copy of a tensor."""
    tensors: dict[str, Tensor] = {}
    for name, owner, parameter, _ in moments(optimizer):
        for key, value in owner.state[parameter].items():
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
    for name, owner, parameter, rows in moments(optimizer):
        for key, value in owner.state[parameter].items():
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
