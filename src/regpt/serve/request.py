"""A completion request: from JSON to a frozen value, or an error that names the field."""

import difflib
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from regpt.serve import text
from regpt.serve.backend import Drawing, SamplingParams

MOST_PROMPTS = 256
MOST_TEXTS = 1024
"""Prompts times n."""
MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 64


class ApiError(Exception):
    """What a client is told: a status and OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        if self.status >= 500:
            error["type"] = "server_error"
        return {"error": error}


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request that was found good."""

    prompts: list[list[int]]
    """Tokens, at least one each."""
    drawing: Drawing
    n: int
    max_tokens: int
    stop: list[str]
    echo: bool
    stream: bool
    include_usage: bool
    tokens_as_ids: bool
    """Whether tokens are named `token_id:N` among the log-probabilities."""


def refuse(message: str, param: str) -> NoReturn:
    """A 400 about a field."""
    raise ApiError(message, param=param)


def number(low: float, high: float, *, whole: bool = False) -> Callable[[str, Any], Any]:
    """A check: a number (an integer if `whole`) from `low` to `high`."""

    def check(name: str, value: Any) -> Any:
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            refuse(
                f"{name} must be {'an integer' if whole else 'a number'}, got {shown(value)}", name
            )
        if not low <= value <= high:
            bounds = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
            refuse(f"{name} must be {bounds}, got {shown(value)}", name)
        return value

    return check


def boolean(name: str, value: Any) -> bool:
    """A check: true or false."""
    if not isinstance(value, bool):
        refuse(f"{name} must be true or false, got {shown(value)}", name)
    return value


def string(name: str, value: Any) -> str:
    """A check: a string."""
    if not isinstance(value, str):
        refuse(f"{name} must be a string, got {shown(value)}", name)
    return value


def strings(name: str, value: Any) -> list[str]:
    """A check: a string or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        refuse(f"{name} must be a string or a list of strings, got {shown(value)}", name)
    if len(texts) > MOST_STOPS:
        refuse(f"{name} has {len(texts)} strings, at most {MOST_STOPS} are looked for", name)
    return texts


def biases(name: str, value: Any) -> dict[int, float]:
    """A check: token ids, as JSON's keys are strings, and what to add to their logits."""
    if not isinstance(value, dict):
        refuse(f"{name} must be an object of token ids and numbers, got {shown(value)}", name)
    check = number(-100, 100)
    found = {}
    for token, bias in value.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            refuse(f"{name}: {shown(token)} is not a token id", name)
        found[int(token)] = float(check(name, bias))
    return found


def options(name: str, value: Any) -> bool:
    """A check: stream_options; whether the usage is wanted."""
    if not isinstance(value, dict):
        refuse(f"{name} must be an object, got {shown(value)}", name)
    fields = read_fields(value, {"include_usage": (False, boolean)}, within=f"{name}.")
    return fields["include_usage"]


def shown(value: Any) -> str:
    """A value in an error message, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


INFINITE = math.inf
FIELDS: dict[str, tuple[Any, Callable[[str, Any], Any]]] = {
    "model": (None, string),
    "prompt": (None, lambda _, value: value),
    "max_tokens": (16, number(0, INFINITE, whole=True)),
    "temperature": (1.0, number(0, 2)),
    "top_p": (1.0, number(0, 1)),
    "n": (1, number(1, MOST_CHOICES, whole=True)),
    "stream": (False, boolean),
    "stream_options": (None, options),
    "logprobs": (None, number(0, MOST_LOGPROBS, whole=True)),
    "echo": (False, boolean),
    "stop": ([], strings),
    "presence_penalty": (0.0, number(-2, 2)),
    "frequency_penalty": (0.0, number(-2, 2)),
    "logit_bias": ({}, biases),
    "seed": (None, number(-(2**63), 2**64 - 1, whole=True)),
    "user": (None, string),
    "top_k": (None, number(1, INFINITE, whole=True)),
    "min_p": (None, number(0, 1)),
    "repetition_penalty": (1.0, number(0.01, 100)),
    "return_tokens_as_token_ids": (False, boolean),
}
"""Every field with its default, which null means too, and its check."""
LEFT_OUT = {
    "best_of": "best_of is not offered: ask for n choices and their logprobs",
    "suffix": "suffix is not offered: GPT-2 continues texts, it does not fill gaps",
}


def read_fields(
    body: dict[str, Any],
    known: dict[str, tuple[Any, Callable[[str, Any], Any]]],
    *,
    within: str = "",
) -> dict[str, Any]:
    """Every known field, checked or its default; an unknown one is an error with a guess."""
    for name, value in body.items():
        if name in LEFT_OUT and not within:
            if value is None or (name == "best_of" and value == (body.get("n") or 1)):
                continue
            refuse(LEFT_OUT[name], name)
        if name not in known:
            near = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.0)
            refuse(f"unknown field {shown(within + name)}: did you mean {within}{near[0]}?", name)
    return {
        name: default if body.get(name) is None else check(name, body[name])
        for name, (default, check) in known.items()
    }


def parse(body: Any, *, positions: int, vocab_size: int) -> CompletionRequest:
    """The request that a JSON value is. Raises `ApiError`."""
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    fields = read_fields(body, FIELDS)
    if fields["stream_options"] is not None and not fields["stream"]:
        refuse("stream_options is for stream: true", "stream_options")
    for token in fields["logit_bias"]:
        if token >= vocab_size:
            refuse(
                f"logit_bias: token {token} is outside the vocabulary of {vocab_size}", "logit_bias"
            )
    prompts = read_prompts(fields["prompt"], positions=positions, vocab_size=vocab_size)
    if len(prompts) * fields["n"] > MOST_TEXTS:
        refuse(
            f"{len(prompts)} prompts with n {fields['n']} are more than {MOST_TEXTS} texts: "
            "send several requests",
            "n",
        )
    longest = max(map(len, prompts))
    if longest + fields["max_tokens"] > positions:
        raise ApiError(
            f"the prompt has {longest} tokens and max_tokens is {fields['max_tokens']}: together "
            f"{longest + fields['max_tokens']}, but the model has {positions} positions",
            param="prompt" if longest > positions else "max_tokens",
            code="context_length_exceeded",
        )
    return CompletionRequest(
        prompts=prompts,
        drawing=drawing_of(fields),
        n=fields["n"],
        max_tokens=fields["max_tokens"],
        stop=[one for one in fields["stop"] if one],
        echo=fields["echo"],
        stream=fields["stream"],
        include_usage=bool(fields["stream_options"]),
        tokens_as_ids=fields["return_tokens_as_token_ids"],
    )


def drawing_of(fields: dict[str, Any]) -> Drawing:
    """How tokens are drawn; without a seed, from one nobody has seen."""
    seed = secrets.randbits(63) if fields["seed"] is None else fields["seed"]
    params = SamplingParams(
        temperature=fields["temperature"],
        top_k=fields["top_k"],
        top_p=max(fields["top_p"], 1e-9) if fields["top_p"] < 1 else None,
        min_p=fields["min_p"],
        repetition_penalty=fields["repetition_penalty"],
        seed=seed,
        rng="portable",
    )
    return Drawing(
        params=params,
        presence_penalty=fields["presence_penalty"],
        frequency_penalty=fields["frequency_penalty"],
        logit_bias=fields["logit_bias"],
        logprobs=fields["logprobs"],
    )


def read_prompts(value: Any, *, positions: int, vocab_size: int) -> list[list[int]]:
    """A string, strings, tokens or lists of tokens, as lists of tokens."""
    if value is None or isinstance(value, str):
        value = [value or ""]
    if not isinstance(value, list):
        refuse(f"prompt must be text, tokens, or a list of them, got {shown(value)}", "prompt")
    if not value:
        refuse("prompt is an empty list: leave it out to begin a text", "prompt")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        value = [value]
    if len(value) > MOST_PROMPTS:
        refuse(f"{len(value)} prompts, at most {MOST_PROMPTS} are taken at a time", "prompt")
    return [read_prompt(one, positions=positions, vocab_size=vocab_size) for one in value]


def read_prompt(value: Any, *, positions: int, vocab_size: int) -> list[int]:
    """One prompt; an empty text is end-of-text, after which GPT-2 begins a new one."""
    if isinstance(value, str):
        if len(value) > positions * text.LONGEST_TOKEN:
            raise ApiError(
                f"the prompt has {len(value)} characters, so at least "
                f"{len(value) // text.LONGEST_TOKEN} tokens; the model has {positions} positions",
                param="prompt",
                code="context_length_exceeded",
            )
        value = text.encode(value) or [text.END_OF_TEXT_ID]
    if not isinstance(value, list) or not all(
        isinstance(one, int) and not isinstance(one, bool) for one in value
    ):
        refuse(f"prompt must be text, tokens, or a list of them, got {shown(value)}", "prompt")
    if not value:
        refuse("prompt has an empty list of tokens", "prompt")
    wrong = next((token for token in value if not 0 <= token < vocab_size), None)
    if wrong is not None:
        refuse(f"token {shown(wrong)} is outside the vocabulary of {vocab_size}", "prompt")
    return value
