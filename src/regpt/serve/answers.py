"""JSON in, errors out: what all routes share."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from regpt.serve.engine import Engine
from regpt.serve.request import ApiError


def read_json(body: bytes) -> Any:
    """A body as JSON. Raises `ApiError`: not UTF-8, not JSON, or nested too deeply."""

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ApiError("the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {str(error)[:200]}") from None


def engine_of(name: Any, engines: Sequence[Engine]) -> Engine:
    """The engine of a model by its name; none means the first. Raises `ApiError`."""
    if not isinstance(name, str):
        return engines[0]
    for engine in engines:
        if engine.loaded.name == name:
            return engine
    served = " and ".join(repr(engine.loaded.name) for engine in engines)
    raise ApiError(
        f"the model {name[:200]!r} is not served here: this is {served}",
        status=404,
        param="model",
        code="model_not_found",
    )


def error_response(error: ApiError) -> Response:
    """An error as OpenAI's object."""
    return Response(
        json.dumps(error.body()), error.status, error.headers, media_type="application/json"
    )


async def on_api_error(request: Request, error: Exception) -> Response:
    """Our own errors."""
    assert isinstance(error, ApiError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    return error_response(ApiError(message, status=error.status_code, headers=headers))


async def on_failure(request: Request, error: Exception) -> Response:
    """Anything else is ours; Starlette raises it again, for the log."""
    return error_response(ApiError("the server failed; its log says why", status=500))


HANDLERS = {ApiError: on_api_error, HTTPException: on_http_error, Exception: on_failure}
