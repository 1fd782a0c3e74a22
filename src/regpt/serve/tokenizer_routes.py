"""What lm-eval asks about the tokenizer, so that it works offline; and what our pages ask."""

import asyncio
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from regpt.serve import text
from regpt.serve.answers import engine_of, read_json
from regpt.serve.engine import Engine
from regpt.serve.request import ApiError, boolean, read_fields, string


def token_list(name: str, value: Any) -> list[int]:
    """A check: a list of token ids."""
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise ApiError(f"{name} must be a list of token ids", param=name)
    return value


SPECIAL = dict.fromkeys(("bos_token", "eos_token", "unk_token"), text.END_OF_TEXT)
TEXT_FIELDS = {
    "prompt": (None, string),
    "content": (None, string),  # llama.cpp's name for it
    "model": (None, string),
    "add_special_tokens": (False, boolean),  # GPT-2 adds none
}
TOKEN_FIELDS = {"tokens": (None, token_list), "model": (None, string)}


async def read(
    request: Request, fields: dict[str, Any], engines: Sequence[Engine]
) -> tuple[dict[str, Any], Engine]:
    """The fields of a body, and the engine of its model."""
    body = read_json(await request.body())
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    found = read_fields(body, fields)
    return found, engine_of(found["model"], engines)


@cache
def vocabulary_json() -> bytes:
    """Every token's bytes, for the pages: a list of strings, a character for each byte."""
    pieces = [text.token_bytes(token).decode("latin-1") for token in range(text.END_OF_TEXT_ID + 1)]
    return json.dumps(pieces, ensure_ascii=False, separators=(",", ":")).encode()


def tokenizer_routes(engines: Sequence[Engine]) -> list[Route]:
    """All of them."""

    async def tokenizer_info(request: Request) -> Response:
        config = engines[0].loaded.config
        return JSONResponse(
            {
                "tokenizer_class": "GPT2Tokenizer",
                **SPECIAL,
                "eos_token_id": text.END_OF_TEXT_ID,
                "model_max_length": config.block_size,
                "vocab_size": config.vocab_size,
                "chat_template": None,
            }
        )

    async def tokenize(request: Request) -> Response:
        fields, engine = await read(request, TEXT_FIELDS, engines)
        given = [fields[name] for name in ("prompt", "content") if fields[name] is not None]
        if len(given) != 1:
            raise ApiError("give the text as prompt (or as content)", param="prompt")
        tokens = await asyncio.to_thread(text.encode, given[0])
        longest = engine.loaded.config.block_size
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": longest})

    async def vocabulary(request: Request) -> Response:
        body = await asyncio.to_thread(vocabulary_json)
        headers = {"cache-control": "private, max-age=86400"}
        return Response(body, headers=headers, media_type="application/json")

    async def detokenize(request: Request) -> Response:
        fields, _ = await read(request, TOKEN_FIELDS, engines)
        if fields["tokens"] is None:
            raise ApiError("tokens is missing", param="tokens")
        written = text.decode(fields["tokens"])
        return JSONResponse({"prompt": written, "content": written})

    return [
        Route("/tokenizer_info", tokenizer_info),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/vocabulary", vocabulary),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]
