"""GPT-2's tokens as text: the tokenizer, for the protocol's files.

End-of-text is never text: it has an entry among the log-probabilities, and no characters.
"""

from collections.abc import Iterable, Sequence

from regpt.core.detokenize import TextStream
from regpt.core.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, get_tokenizer

LONGEST_TOKEN = 128
"""Bytes of the longest token: a text of more than so many characters a token cannot fit."""

__all__ = ["END_OF_TEXT", "END_OF_TEXT_ID", "LONGEST_TOKEN", "Offsets", "TextStream"]


def encode(text: str) -> list[int]:
    """Text to tokens; `<|endoftext|>` is the special token, as OpenAI's default prompt has it."""
    return get_tokenizer().encode(text, allow_special=True)


def decode(tokens: Sequence[int]) -> str:
    """Tokens to text, end-of-text as it is written; what is not UTF-8 becomes U+FFFD."""
    return get_tokenizer().decode(tokens)


def token_bytes(token: int) -> bytes:
    """What a token stands for."""
    return get_tokenizer().decode_bytes([token])


def stream(stop: Sequence[str] = ()) -> TextStream:
    """Tokens to text as they come, held back where a stop string may begin."""
    return TextStream(get_tokenizer(), stop)


class Offsets:
    """A text token by token: where each begins, in characters."""

    def __init__(self, tokens: Iterable[int]) -> None:
        written = stream()
        self.starts: list[int] = []
        self.text = ""
        for token in tokens:
            self.starts.append(len(self.text))
            self.text += written.feed(token)
        self.text += written.finish()
