"""GPT-2's byte-level BPE, from a merge table inside the package: nothing is ever downloaded.

The table (assets/gpt2.tiktoken, see NOTICE) is data: 50,256 byte strings in rank order. tiktoken's
`Encoding` does the merging; this file decides what special means:

- text from files is encoded as plain text, so a document that happens to contain the characters
  `<|endoftext|>` cannot smuggle a control token into the data;
- token 50256 is only ever produced on request (`allow_special=True`, or `tokenizer.eot`);
- decoding never raises: bytes that are not UTF-8, and ids outside the vocabulary (a padded
  embedding has some), become U+FFFD.

    >>> tokenizer = get_tokenizer()
    >>> tokenizer.encode("Hello, I'm a language model,")
    [15496, 11, 314, 1101, 257, 3303, 2746, 11]
"""

import hashlib
from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import tiktoken

from regpt.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DIGEST = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
VOCAB_SIZE = 50257
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256

# GPT-2's pattern (openai/gpt-2, src/encoder.py) with possessive quantifiers, as tiktoken writes it:
# the same pieces, without the backtracking.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


def load_ranks() -> dict[bytes, int]:
    """Read the packaged merge table: token bytes to rank, its digest verified."""
    table = resources.files("regpt.core").joinpath("assets/gpt2.tiktoken").read_bytes()
    digest = hashlib.sha256(table).hexdigest()
    if digest != DIGEST:
        raise UserError(
            f"the packaged merge table has sha256 {digest}, expected {DIGEST}: reinstall regpt"
        )
    words = table.split()  # token, rank, token, rank, ...
    return dict(zip(map(a2b_base64, words[::2]), map(int, words[1::2]), strict=True))


class Tokenizer:
    """GPT-2's encoder and decoder. `digest` identifies it in datasets and checkpoints."""

    vocab_size = VOCAB_SIZE
    eot = END_OF_TEXT_ID
    digest = DIGEST

    def __init__(self) -> None:
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=PATTERN,
            mergeable_ranks=load_ranks(),
            special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
            explicit_n_vocab=VOCAB_SIZE,
        )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text to token ids; `<|endoftext|>` counts as plain text unless `allow_special`."""
        if allow_special:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> "np.ndarray":
        """The ids of plain text as an array (n,) uint32: those of `encode`, without a list."""
        # tiktoken 0.9 allows special tokens here whatever it is told; and half surrogate pairs
        # raise. Both are rare, and the list is there for them.
        if END_OF_TEXT not in text:
            try:
                return self._encoding.encode_to_numpy(text, disallowed_special=())
            except UnicodeEncodeError:
                pass
        import numpy as np

        return np.array(self.encode(text), dtype=np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Token ids to bytes; an id outside the vocabulary becomes U+FFFD."""
        known = self._encoding.decode_single_token_bytes
        return b"".join(known(i) if 0 <= i < VOCAB_SIZE else REPLACEMENT for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text. Never raises: what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


@lru_cache(maxsize=1)
def get_tokenizer() -> Tokenizer:
    """The one tokenizer of this process; building it takes about a tenth of a second."""
    return Tokenizer()
