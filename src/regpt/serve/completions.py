"""From tokens to OpenAI's completion objects: text, log-probabilities, offsets, chunks.

A `Completion` is the engine's view of a request. Each token becomes text at once, in the engine's
thread, because a stop string ends a text; what may be shown goes to the event loop as `Piece`s.

Text is held back where a stop string may begin and where a character is not whole. A token's
log-probabilities wait with it: they are told when the text at its offset is. So streaming and
not streaming give the same entries, and none behind a stop string.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from regpt.serve import text
from regpt.serve.backend import Choice, Entry
from regpt.serve.engine import Job
from regpt.serve.request import CompletionRequest

LEAST = -9999.0
"""What stands for a probability of nothing: JSON has no infinity."""

FinishReason = Literal["stop", "length"]


@dataclass(kw_only=True)
class Piece:
    """What came of a choice since the last time."""

    index: int
    text: str = ""
    entries: list[tuple[Entry, int]] = field(default_factory=list)
    """Tokens with their offsets."""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Failure:
    """There will be no more pieces."""

    message: str


class Written:
    """The text of one choice so far."""

    def __init__(self, index: int, choice: Choice, request: CompletionRequest, base: int) -> None:
        self.index, self.choice, self.request, self.base = index, choice, request, base
        self.stream = text.stream(request.stop)
        self.released = base
        """Characters told, the prompt's included if it is echoed."""
        self.waiting: list[tuple[Entry, int]] = []
        self.drawn = 0

    def feed(self, entry: Entry) -> tuple[str, list[tuple[Entry, int]], FinishReason | None]:
        """A drawn token: text and entries that may be told now, and whether it was the last."""
        self.drawn += 1
        self.waiting.append((entry, self.released + len(self.stream.held)))
        shown = self.stream.feed(entry.token)
        reason: FinishReason | None = None
        if self.stream.stopped or entry.token == text.END_OF_TEXT_ID:
            reason = "stop"
        elif self.drawn == self.request.max_tokens:
            reason = "length"
        if reason is not None:
            shown += self.stream.finish()
            reason = "stop" if self.stream.stopped else reason
        self.released += len(shown)
        everything = reason is not None and not self.stream.stopped
        told = [
            (one, offset) for one, offset in self.waiting if everything or offset < self.released
        ]
        self.waiting = self.waiting[len(told) :]
        return shown, told, reason


class Completion(Job):
    """A request under way."""

    def __init__(
        self, request: CompletionRequest, deliver: Callable[[list[Piece | Failure]], None]
    ) -> None:
        self.request, self.deliver = request, deliver
        self.created = int(time.time())
        self.finished = 0
        """Choices that have ended, as far as they were told."""
        scored = request.echo and request.drawing.logprobs is not None
        self.prompts = [text.Offsets(prompt) for prompt in request.prompts]
        self.scores: list[list[Entry]] = [[Entry(token=one[0])] for one in request.prompts]
        """Entries of each prompt's tokens; the first has no probability."""
        self.choices = [
            Choice(
                prompt=prompt,
                request=self,
                scores_prompt=scored and number == 0,
                number=number,
                max_tokens=request.max_tokens,
                drawing=request.drawing,
            )
            for prompt in request.prompts
            for number in range(request.n)
        ]
        self.written = {
            choice: Written(
                index,
                choice,
                request,
                len(self.prompts[index // request.n].text) if request.echo else 0,
            )
            for index, choice in enumerate(self.choices)
        }
        self._begun: set[Choice] = set()
        self._pieces: dict[int, Piece] = {}
        super().__init__()

    def read(self, choice: Choice, prompt: list[Entry]) -> None:
        """Keep the scores of a prompt for all of its choices."""
        self.scores[self.written[choice].index // self.request.n] += prompt

    def drew(self, choice: Choice, entry: Entry) -> bool:
        """Write a token down."""
        piece = self._piece(choice)
        shown, told, reason = self.written[choice].feed(entry)
        piece.text += shown
        piece.entries += told
        piece.finish_reason = reason
        return reason is not None

    def end(self, choice: Choice) -> None:
        """No token was asked for."""
        self._piece(choice).finish_reason = "length"

    def _piece(self, choice: Choice) -> Piece:
        """What is being put together of a choice; the first time with the echoed prompt."""
        index = self.written[choice].index
        piece = self._pieces.setdefault(index, Piece(index=index))
        if choice not in self._begun:
            self._begun.add(choice)
            if self.request.echo:
                place = index // self.request.n
                piece.text = self.prompts[place].text
                if self.request.drawing.logprobs is not None:
                    starts = self.prompts[place].starts
                    piece.entries = list(zip(self.scores[place], starts, strict=True))
        return piece

    def flush(self) -> None:
        """Send the pieces that say something."""
        pieces = [
            piece
            for piece in self._pieces.values()
            if piece.text or piece.entries or piece.finish_reason
        ]
        self._pieces = {}
        if pieces:
            self.deliver([*pieces])

    def fail(self, message: str) -> None:
        """Send the bad news."""
        self.deliver([Failure(message)])

    def usage(self) -> dict[str, int]:
        """Tokens read, each prompt once, and drawn."""
        prompt = sum(map(len, self.request.prompts))
        drawn = sum(written.drawn for written in self.written.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
        }


class Format:
    """The objects of one response."""

    def __init__(self, completion: Completion, *, name: str, model: str) -> None:
        self.completion, self.name, self.model = completion, name, model

    def head(self) -> dict[str, Any]:
        """What all objects of a response share."""
        return {
            "id": self.name,
            "object": "text_completion",
            "created": self.completion.created,
            "model": self.model,
            "system_fingerprint": self.completion.fingerprint,
        }

    def choice(self, piece: Piece) -> dict[str, Any]:
        """A choice, or a piece of it."""
        request = self.completion.request
        logprobs = None
        if request.drawing.logprobs is not None:
            logprobs = logprobs_object(
                piece.entries, request.drawing.logprobs, as_ids=request.tokens_as_ids
            )
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """The response of a request that does not stream, from all its pieces."""
        choices = [Piece(index=index) for index in range(len(self.completion.choices))]
        for piece in pieces:
            choice = choices[piece.index]
            choice.text += piece.text
            choice.entries += piece.entries
            choice.finish_reason = piece.finish_reason
        objects = [self.choice(choice) for choice in choices]
        return {**self.head(), "choices": objects, "usage": self.completion.usage()}

    def chunk(self, piece: Piece) -> bytes:
        """A piece as a server-sent event."""
        usage = {"usage": None} if self.completion.request.include_usage else {}
        return event({**self.head(), "choices": [self.choice(piece)], **usage})

    def last(self) -> bytes:
        """What ends a stream."""
        usage = b""
        if self.completion.request.include_usage:
            usage = event({**self.head(), "choices": [], "usage": self.completion.usage()})
        return usage + b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def logprobs_object(
    told: list[tuple[Entry, int]], top: int, *, as_ids: bool
) -> dict[str, list[Any]]:
    """Four equally long arrays; a prompt's first token has no probability: null."""

    def name(token: int) -> str:
        return f"token_id:{token}" if as_ids else text.decode([token])

    best: list[dict[str, float] | None] = []
    for entry, _ in told:
        if entry.logprob is None:
            best.append(None)
            continue
        values: dict[str, float] = {}
        for token, value in [*entry.top[:top], (entry.token, entry.logprob)]:
            key = name(token)
            values[key] = max(values.get(key, LEAST), value)  # the higher of two with one text
        best.append(values)
    return {
        "tokens": [name(entry.token) for entry, _ in told],
        "token_logprobs": [
            None if entry.logprob is None else max(entry.logprob, LEAST) for entry, _ in told
        ],
        "top_logprobs": best,
        "text_offset": [offset for _, offset in told],
    }
