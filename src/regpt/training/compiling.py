"""Whether a run compiles its blocks: where that pays after its own cost, unless one says.

torch.compile takes about a minute before the first step and makes a GPU's steps a good part faster,
by keeping what lies between the matrix products in one kernel. So a run compiles by itself on a GPU
if it has many steps. Off a GPU it does not: there `fused_block.py` and `blocked_attention.py` do
that work, which compiled blocks would be without. The decision looks at the whole run, not at what
is left of it: a resumed run decides as before. (The number of steps is an estimate: not measured
here, no device.)
"""

import torch

from regpt.training.config import RunConfig

PAYS_FROM = 500
"""Steps of a run from which on compiling pays."""


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether a run compiles its blocks."""
    return decide(config, device)[0]


def decide(config: RunConfig, device: torch.device) -> tuple[bool, str]:
    """Whether a run compiles its blocks, and why, for the person who waits for it."""
    if config.compile is not None:
        return config.compile, "as asked for"
    if device.type != "cuda":
        return False, "off a GPU the project's own kernels stand in"
    if config.steps < PAYS_FROM:
        return False, f"{config.steps:,} steps are over before it has paid (from {PAYS_FROM} on)"
    return True, f"{config.steps:,} steps, it pays from {PAYS_FROM} on"
