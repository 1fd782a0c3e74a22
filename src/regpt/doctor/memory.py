"""How much memory a training takes, by arithmetic: counted tensor by tensor, so it can be checked.

P parameters, C channels, L layers, nh heads, V vocabulary, T tokens, s bytes of the compute dtype
(2 for bf16, 4 for fp32). What backward keeps of one token in one block:

    ln_1 input 4C · c_attn input sC · q, k, v 3sC · attention output sC · log-sum-exp 4nh
    ln_2 input 4C · c_fc input sC · GELU input 4sC · c_proj input 4sC

that is (8 + 14s) C + 4nh bytes; attention in blocks (a CPU in bf16) keeps s nh T for a token's
probabilities up to 256 positions, instead of the log-sum-exp; where blocks are fused (fused.py) 12C
less are kept, which is not counted on. Embeddings and ln_f add 8C, the loss
(4 + 2s) C for the hidden states and their gradient. What backward needs beside that, while it is in
one block, is not counted: where steps are timed, `Memory.corrected` takes it from their peak. All
logits never stand in memory (loss.py): a chunk of 1024 rows does, with its float32 softmax beside
it on a GPU, and the embedding's gradient twice. Fixed: parameters 4P, gradients 4P, AdamW's two
averages 8 per parameter (Muon's momentum 4), with bf16 autocast the cast copies of the matrices 2
each. On a CPU a checkpoint's copy (parameters and optimizer state) lies in the same memory. With a
compact vocabulary V is the rows there are, and only checkpoints have all. A figure for planning:
allocators and libraries take some more, so a tenth is left free.
"""

from dataclasses import dataclass, replace

import torch

from regpt.core.loss import CHUNK_ROWS
from regpt.core.model import GPT, GPTConfig
from regpt.core.optimizer import split_parameters
from regpt.fast.training.blocked_attention import BLOCK
from regpt.system.runtime import Runtime
from regpt.training.build import uses_blocked_attention
from regpt.training.config import RunConfig

HEADROOM = 0.9
"""The share of the memory that is counted on."""


LIBRARIES = 200_000_000
"""Bytes of a peak that are no tensors: kernels loaded at their first use, threads, workspaces."""


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
        """With the activations that steps of `batch_size` sequences, whose peak was `peak`, show.

        Only ever larger than counted.
        """
        without_saving = self.fixed - self.checkpoint_copy + LIBRARIES
        measured = -(-(peak - without_saving) // batch_size)
        return replace(self, activations=max(self.activations, measured))


def per_token(shape: GPTConfig, size: int) -> int:
    """Bytes of activations that one block keeps of one token; `size` of the compute dtype."""
    return (8 + 14 * size) * shape.n_embd + 4 * shape.n_head


def count_memory(
    config: RunConfig,
    runtime: Runtime,
    *,
    processes: int,
    available: int,
    rows: int | None = None,
) -> Memory:
    """The arithmetic of the module's text, for one of so many processes.

    `rows` are those of the embedding, if they are fewer than the vocabulary.
    """
    shape = config.model if rows is None else replace(config.model, vocab_size=rows)
    left_out = (config.model.vocab_size - shape.vocab_size) * shape.n_embd
    with torch.device("meta"):
        model = GPT(shape)
    hidden, decayed, plain = split_parameters(model, config.optimizer)
    muon = sum(parameter.numel() for parameter in hidden)
    total = model.num_parameters()
    optimizer = 8 * (total - muon) + 4 * muon
    matrices = sum(p.numel() for p in (*hidden, *decayed, *plain) if p.ndim > 1)
    size = runtime.dtype.itemsize
    parts = processes // config.replicas if config.shard else 1
    copies = 2 * matrices if size == 2 else 0
    block = sum(parameter.numel() for parameter in model.h[0].parameters())
    if parts > 1:  # two blocks and everything outside the blocks are whole at a time
        copies += 4 * (total - (config.model.n_layer - 2) * block)
    checkpoint = 4 * total + optimizer + 12 * left_out
    checkpoint_copy = checkpoint if runtime.device.type == "cpu" else 0
    tokens = config.block_size
    softmax = 0 if runtime.device.type == "cpu" else 4
    chunk = min(CHUNK_ROWS, config.batch_size * tokens)
    loss = chunk * shape.vocab_size * (size + softmax)
    loss += shape.vocab_size * shape.n_embd * (4 + size)
    kept = shape.n_layer * per_token(shape, size)
    if uses_blocked_attention(config, runtime) and tokens <= BLOCK:
        kept += shape.n_layer * shape.n_head * (size * tokens - 4)
    if config.checkpoint_activations:
        kept = shape.n_layer * 4 * shape.n_embd + per_token(shape, size)
    return Memory(
        parameters=4 * total // parts,
        gradients=4 * total // parts,
        optimizer=optimizer // parts,
        copies=copies + checkpoint_copy,
        loss=loss,
        activations=tokens * (kept + (12 + 2 * size) * shape.n_embd),
        checkpoint=checkpoint,
        checkpoint_copy=checkpoint_copy,
        parameters_whole=4 * (total + left_out),
        available=available,
    )
