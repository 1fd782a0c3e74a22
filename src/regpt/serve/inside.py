"""A look inside a text, for a page: what `regpt explain` finds, the logit lens, attention.

It runs beside the engine, in torch, one look at a time.
"""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from regpt.evaluation.explain import attention_maps, explain_text, logit_lens
from regpt.serve import text
from regpt.serve.backend import GPT
from regpt.serve.engine import Engine
from regpt.serve.request import ApiError, number, string
from regpt.serve.tokenizer_routes import read

MOST_TOKENS = 256
"""Of a text: attention is a square of it, and the lens a row of all tokens for each of its."""
TOP = 10
TEXT_FIELDS = {"prompt": ("", string), "model": (None, string)}
LAYER_FIELDS = TEXT_FIELDS | {"layer": (None, number(0, float("inf"), whole=True))}


def look(gpt: GPT, ids: list[int]) -> dict[str, Any]:
    """Every place of a text: its token, what was likely there, and how that came about."""
    places = explain_text(gpt, ids, top=TOP)
    return {
        "tokens": ids,
        "places": [
            {"probability": one.probability, "rank": one.rank, "likely": one.alternatives}
            for one in places
        ],
        "lens": [
            [[guess.token, guess.probability, guess.actual] for guess in layer]
            for layer in logit_lens(gpt, ids)
        ],
        "layers": gpt.config.n_layer,
        "heads": gpt.config.n_head,
    }


def attention(gpt: GPT, ids: list[int], layer: int) -> dict[str, Any]:
    """Where each head of a layer looks: (heads, T, T) as bytes, 255 for all of it."""
    maps = attention_maps(gpt, ids, layer=layer)
    data = (255 * maps).round().byte().numpy().tobytes()
    return {"size": len(ids) + 1, "maps": base64.b64encode(data).decode("ascii")}


def inside_routes(engines: Sequence[Engine]) -> list[Route]:
    """Two routes."""
    alone = asyncio.Lock()

    async def ids_of(fields: dict[str, Any], engine: Engine) -> list[int]:
        ids = await asyncio.to_thread(text.encode, fields["prompt"])
        most = min(MOST_TOKENS, engine.loaded.config.block_size - 1)
        if not 1 <= len(ids) <= most:
            raise ApiError(
                f"the text has {len(ids)} tokens: give 1 to {most} to look into", param="prompt"
            )
        return ids

    async def of_text(request: Request) -> Response:
        fields, engine = await read(request, TEXT_FIELDS, engines)
        ids = await ids_of(fields, engine)
        async with alone:
            return JSONResponse(await asyncio.to_thread(look, engine.loaded.gpt, ids))

    async def of_layer(request: Request) -> Response:
        fields, engine = await read(request, LAYER_FIELDS, engines)
        ids, layer = await ids_of(fields, engine), fields["layer"]
        layers = engine.loaded.config.n_layer
        if layer is None or layer >= layers:
            raise ApiError(f"layer must be from 0 to {layers - 1}, got {layer}", param="layer")
        async with alone:
            found = await asyncio.to_thread(attention, engine.loaded.gpt, ids, layer)
        return JSONResponse(found)

    return [
        Route("/inside/text", of_text, methods=["POST"]),
        Route("/inside/attention", of_layer, methods=["POST"]),
    ]
