"""Tokens to text as they come: whole characters only, up to a stop string.

A GPT-2 token is bytes, not characters: a Japanese character or an emoji is two or three tokens, so
text may only be shown up to the last whole character. And a stop string can begin in one token and
end in another, so text that might be its beginning is held back until it is known not to be.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from regpt.core.tokenizer import END_OF_TEXT_ID, Tokenizer


class TextStream:
    """Turns one row's tokens into pieces of text that can be shown at once."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""
        self.stopped = False
        """Whether a stop string was met; nothing more comes out then."""

    def feed(self, token: int) -> str:
        """The text that this token makes certain."""
        if self.stopped or token == END_OF_TEXT_ID:
            return ""
        self.held += self.decoder.decode(self.tokenizer.decode_bytes([token]))
        return self._release(final=False)

    def finish(self) -> str:
        """What was still held back."""
        if self.stopped:
            return ""
        self.held += self.decoder.decode(b"", final=True)
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        places = [place for place in map(self.held.find, self.stop) if place >= 0]
        if places:
            self.stopped = True
            text, self.held = self.held[: min(places)], ""
            return text
        keep = 0 if final else max((beginning(self.held, stop) for stop in self.stop), default=0)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text


def beginning(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


def stream_text(
    tokens: Iterable[int], tokenizer: Tokenizer, *, stop: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces of text from one row's tokens, ending at the first stop string (not included)."""
    stream = TextStream(tokenizer, stop)
    for token in tokens:
        piece = stream.feed(token)
        if piece:
            yield piece
        if stream.stopped:
            return
    piece = stream.finish()
    if piece:
        yield piece


def cut_at_stop(
    row: Sequence[int], prompt_length: int, tokenizer: Tokenizer, *, stop: Sequence[str]
) -> tuple[list[int], str]:
    """A row's tokens and its text (prompt included) up to the first stop string after the prompt.

    Tokens end with the one that completed the stop string; the text ends before it.
    """
    stream = TextStream(tokenizer, stop)
    text = tokenizer.decode([token for token in row[:prompt_length] if token != END_OF_TEXT_ID])
    for place, token in enumerate(row[prompt_length:], start=prompt_length):
        text += stream.feed(token)
        if stream.stopped:
            return list(row[: place + 1]), text
    return list(row), text + stream.finish()
