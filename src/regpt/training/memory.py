"""How much memory a training takes: counted tensor by tensor, so that it can be checked.

P parameters, C channels, nh heads, V vocabulary, T tokens, s bytes of the compute dtype (2 for
bf16, 4 for fp32). Backward needs of one token in one block:

    ln_1 input 4C · c_attn input sC · q, k, v 3sC · attention output sC · log-sum-exp 4nh
    ln_2 input 4C · c_fc input sC · GELU input 4sC · c_proj input 4sC

that is (8 + 14s) C + 4nh bytes; blocked attention (a CPU in bf16) has s nh T for a token's
probabilities up to 256 positions, instead of the log-sum-exp; fused blocks need 12C less, which is
not counted on. Embeddings and ln_f add 8C, the loss (4 + 2s) C for the hidden states and their
gradient. Logits come in chunks of 1024 rows, with a float32 softmax beside them on a GPU, and the
embedding's gradient twice. Fixed: parameters 4P, gradients 4P, AdamW's two averages 8 per parameter
(Muon's momentum 4), with bf16 the cast copies of the matrices 2 each. On a CPU a checkpoint's copy
lies in the same memory. With a compact vocabulary V is the rows there are; checkpoints have all. A
tenth is left free for allocators and libraries.
"""

from dataclasses import dataclass, replace

import torch

from regpt.core.loss import chunk_rows
from regpt.core.model import GPT
from regpt.core.optimizer import split_parameters
from regpt.fast.training.blocked_attention import BLOCK
from regpt.system.runtime import Runtime
from regpt.training.build import uses_blocked_attention
from regpt.training.config import RunConfig

HEADROOM = 0.9
"""The share of the memory that is counted on."""
LIBRARIES = 200_000_000
"""Bytes of a peak that are no tensors: kernels loaded at their first use, threads, workspaces."""


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process."""

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    """Weights in the compute dtype, layers gathered from shards, a checkpoint's copy on a CPU."""
    loss: int
    """A chunk of logits, and the embedding's gradient until backward adds it up."""
    activations: int
    """Of one sequence of a micro-batch."""
    checkpoint: int
    """Parameters and optimizer state, whole: what one checkpoint takes on the disk."""
    checkpoint_copy: int
    """The part of `copies` that is a checkpoint's."""
    parameters_whole: int
    """What the model's file takes."""
    available: int
    """What this machine has free."""

    @property
    def fixed(self) -> int:
        """Whatever the batch."""
        return self.parameters + self.gradients + self.optimizer + self.copies + self.loss

    def needed(self, batch_size: int) -> int:
        """With so many sequences in a micro-batch."""
        return self.fixed + batch_size * self.activations

    @property
    def largest_batch(self) -> int:
        """The most sequences per micro-batch that fit; 0: not one."""
        left = int(self.available * HEADROOM) - self.fixed
        return max(left // self.activations, 0)

    def corrected(self, peak: int, batch_size: int) -> "Memory":
        """With the activations that a measured peak shows, if they are more than were counted."""
        without_saving = self.fixed - self.checkpoint_copy + LIBRARIES
        measured = -(-(peak - without_saving) // batch_size)
        return replace(self, activations=max(self.activations, measured))


def count_memory(
    config: RunConfig,
    runtime: Runtime,
    *,
    processes: int,
    available: int,
    rows: int | None = None,
) -> Memory:
    """The arithmetic above, for one of so many processes; `rows` are a compact embedding's."""
    shape = config.model if rows is None else replace(config.model, vocab_size=rows)
    left_out = (config.model.vocab_size - shape.vocab_size) * shape.n_embd
    with torch.device("meta"):
        model = GPT(shape)
    hidden, decayed, plain = split_parameters(model, config.optimizer)
    total, on_cpu = model.num_parameters(), runtime.device.type == "cpu"
    size, tokens, layers = runtime.dtype.itemsize, config.block_size, shape.n_layer
    optimizer = 8 * total - 4 * sum(parameter.numel() for parameter in hidden)
    matrices = sum(p.numel() for p in (*hidden, *decayed, *plain) if p.ndim > 1)
    copies = 2 * matrices if size == 2 else 0
    parts = processes // config.replicas if config.shard else 1
    if parts > 1:  # two blocks and everything outside the blocks are whole at a time
        block = sum(parameter.numel() for parameter in model.h[0].parameters())
        copies += 4 * (total - (layers - 2) * block)
    checkpoint = 4 * total + optimizer + 12 * left_out
    checkpoint_copy = checkpoint if on_cpu else 0
    chunk = min(chunk_rows(shape.vocab_size), config.batch_size * tokens)
    loss = chunk * shape.vocab_size * (size + (0 if on_cpu else 4))
    loss += shape.vocab_size * shape.n_embd * (4 + size)
    one_block = (8 + 14 * size) * shape.n_embd + 4 * shape.n_head
    per_token = layers * one_block
    if uses_blocked_attention(config, runtime) and tokens <= BLOCK:
        per_token += layers * shape.n_head * (size * tokens - 4)
    if config.checkpoint_activations:
        per_token = layers * 4 * shape.n_embd + one_block
    return Memory(
        parameters=4 * total // parts,
        gradients=4 * total // parts,
        optimizer=optimizer // parts,
        copies=copies + checkpoint_copy,
        loss=loss,
        activations=tokens * (per_token + (12 + 2 * size) * shape.n_embd),
        checkpoint=checkpoint,
        checkpoint_copy=checkpoint_copy,
        parameters_whole=4 * (total + left_out),
        available=available,
    )
