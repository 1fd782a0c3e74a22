"""Validation loss that compares: every token of a fixed text is scored exactly once.

The text is cut in consecutive windows of `block_size` targets, so the figure depends neither on the
batch size nor on the number of processes. It is printed in two units that survive a change of
tokenizer: bits per byte and nats per character (bytes and characters of the scored tokens; an
end-of-text between documents is scored and has none).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from regpt.data.loader import Dataset, read_windows
from regpt.errors import UserError
from regpt.loss import next_token_loss
from regpt.model import GPT
from regpt.runtime import Runtime
from regpt.tokenizer import VOCAB_SIZE, get_tokenizer

BATCH_TOKENS = 2048
"""Tokens scored at once: 2048 x 50257 float32 logits are 0.4 GB."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The score of a text."""

    nats: float
    """Summed cross-entropy."""
    tokens: int
    """Targets scored: one fewer than the text has."""
    bytes: int
    """UTF-8 bytes of the scored tokens."""
    characters: int
    """Characters of the scored tokens."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Compression of the text: 8 is none."""
        return self.nats / math.log(2) / max(self.bytes, 1)

    @property
    def nats_per_character(self) -> float:
        """The unit of character-level models."""
        return self.nats / max(self.characters, 1)


@lru_cache(maxsize=1)
def token_sizes() -> tuple[np.ndarray, np.ndarray]:
    """Bytes and characters of every GPT-2 token, int64 (vocab_size,) each; end-of-text has none.

    A character is counted at its first byte, so the counts add up over any cut of a text.
    """
    tokenizer = get_tokenizer()
    pieces = [tokenizer.decode_bytes([i]) for i in range(VOCAB_SIZE)]
    pieces[tokenizer.eot] = b""
    num_bytes = np.array([len(piece) for piece in pieces])
    continuation = np.array([sum(byte & 0xC0 == 0x80 for byte in piece) for piece in pieces])
    return num_bytes, num_bytes - continuation


def count_text(dataset: Dataset, start: int, *, chunk: int = 1 << 20) -> tuple[int, int]:
    """Bytes and characters of the tokens from `start` to the end, read chunk by chunk."""
    sizes, characters = token_sizes()
    total_bytes = total_characters = 0
    for position in range(start, len(dataset), chunk):
        ids = dataset.read(position, min(position + chunk, len(dataset)))
        ids = ids[ids < VOCAB_SIZE]
        total_bytes += int(sizes[ids].sum())
        total_characters += int(characters[ids].sum())
    return total_bytes, total_characters


@torch.no_grad()  # not inference_mode: a sharded model would keep what it gathered in it
def validate(model: GPT, dataset: Dataset, runtime: Runtime, *, block_size: int) -> Validation:
    """Score a whole dataset, `block_size` tokens of context at most.

    Draws no random numbers, so a training run is the same with and without it.

    Raises:
        UserError: fewer than two tokens.
    """
    if len(dataset) < 2:
        raise UserError(f"the validation text has {len(dataset)} tokens, but 2 are needed")
    offsets = np.arange(0, len(dataset) - 1, block_size)
    rows = max(1, BATCH_TOKENS // block_size)
    total = torch.zeros((), dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(offsets), rows):
            x, y = read_windows(dataset, offsets[first : first + rows], block_size)
            with runtime.autocast():
                nats = next_token_loss(model, x.to(runtime.device), y.to(runtime.device))
            total += nats.double().cpu()
    finally:
        model.train(was_training)
    num_bytes, num_characters = count_text(dataset, 1)
    return Validation(
        nats=total.item(), tokens=len(dataset) - 1, bytes=num_bytes, characters=num_characters
    )
