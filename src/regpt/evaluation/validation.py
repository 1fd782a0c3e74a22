"""Validation loss that compares: every token of a fixed text is scored exactly once.

The figure depends on the windows (windows.py) alone, not on batch size, processes or device, but
for rounding. Its units survive a change of tokenizer: bits per byte and nats per character, of the
scored tokens; an end-of-text between documents is scored and has none.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from regpt.core.data import CHUNK, Dataset
from regpt.core.model import GPT
from regpt.core.tokenizer import VOCAB_SIZE, get_tokenizer
from regpt.evaluation.scoring import score_windows
from regpt.evaluation.windows import cut_windows
from regpt.system.distributed import World
from regpt.system.runtime import Runtime

BATCH_TOKENS = 2048
"""Tokens read at once."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    nll: float
    """Summed cross-entropy, in nats."""
    tokens: int
    """Targets scored: one fewer than the text has."""
    bytes: int
    """UTF-8 bytes of the scored tokens."""
    characters: int
    """Characters of the scored tokens."""
    stride: int
    """Tokens from one window to the next."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens the model hesitates, on average."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Compression of the text: 8 is none."""
        return self.nll / math.log(2) / max(self.bytes, 1)

    @property
    def nats_per_character(self) -> float:
        """The unit of character-level models."""
        return self.nll / max(self.characters, 1)


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


def count_text(dataset: Dataset, start: int) -> tuple[int, int]:
    """Bytes and characters of the tokens from `start` to the end, read chunk by chunk."""
    sizes, characters = token_sizes()
    total_bytes = total_characters = 0
    for position in range(start, len(dataset), CHUNK):
        ids = dataset.read(position, min(position + CHUNK, len(dataset)))
        ids = ids[ids < VOCAB_SIZE]
        total_bytes += int(sizes[ids].sum())
        total_characters += int(characters[ids].sum())
    return total_bytes, total_characters


def validate(
    model: GPT,
    dataset: Dataset,
    runtime: Runtime,
    *,
    block_size: int,
    stride: int | None = None,
    documents: bool = False,
    batch_tokens: int | None = None,
    world: World | None = None,
) -> Validation:
    """Score a whole dataset. Draws no random numbers: a training run is the same without it.

    The first token is not scored, having nothing before it. `stride` is from one window to the
    next, by default `block_size`, the most tokens of context; with `documents` there is none across
    an end-of-text. `batch_tokens` (default `BATCH_TOKENS`) and `world`: as in `score_windows`.
    Raises UserError for fewer than two tokens, an impossible stride, or a token outside the
    vocabulary.
    """
    windows = cut_windows(dataset, block_size=block_size, stride=stride, documents=documents)
    nll, _ = score_windows(
        model, dataset, windows, runtime, batch_tokens=batch_tokens or BATCH_TOKENS, world=world
    )
    num_bytes, num_characters = count_text(dataset, 1)
    return Validation(
        nll=nll.sum().item(),
        tokens=len(dataset) - 1,
        bytes=num_bytes,
        characters=num_characters,
        stride=stride or block_size,
    )
