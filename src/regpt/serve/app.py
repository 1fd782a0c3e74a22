"""The application: OpenAI's completions, models, health and metrics, over one engine or several."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from regpt.serve import pages
from regpt.serve.answers import HANDLERS, engine_of, read_json
from regpt.serve.completions import Completion, Failure, Format, Piece, event
from regpt.serve.engine import Closed, Engine, Full
from regpt.serve.inside import inside_routes
from regpt.serve.metrics import render
from regpt.serve.request import ApiError, parse
from regpt.serve.runs import Runs
from regpt.serve.security import Security
from regpt.serve.tokenizer_routes import tokenizer_routes

WAIT_SECONDS = 600.0
"""A request whose first token is not there by then is told to come again."""
RETRY_SECONDS = 5
SHUTTING_DOWN = "the server is shutting down"

Pieces = asyncio.Queue[list[Piece | Failure]]


class Disconnected(Exception):
    """The client has gone."""


async def gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; `end` is called however they end, by a client that goes too."""

    def __init__(self, lines: AsyncIterator[bytes], *, end: Callable[[], None]) -> None:
        headers = {"x-accel-buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


class Server:
    """The handlers, over the engines of the models that are served."""

    def __init__(
        self,
        engines: Sequence[Engine],
        runs: Runs,
        *,
        facts: dict[str, Any],
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.engines, self.runs, self.facts = engines, runs, facts
        self.wait_seconds = wait_seconds
        self.created = int(time.time())

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            pages.page("/", "scratchpad.html"),
            pages.page("/inside", "inside.html"),
            Route("/about", self.about),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await request.body()
        loop = asyncio.get_running_loop()
        pieces: Pieces = asyncio.Queue()

        def deliver(new: list[Piece | Failure]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, new)

        def understand() -> tuple[Completion, Engine]:
            value = read_json(body)
            name = value.get("model") if isinstance(value, dict) else None
            engine = engine_of(name, self.engines)
            config = engine.loaded.config
            asked = parse(value, positions=config.block_size, vocab_size=config.vocab_size)
            return Completion(asked, deliver), engine

        completion, engine = await asyncio.to_thread(understand)
        submit(completion, engine)
        name = f"cmpl-{secrets.token_hex(12)}"
        form = Format(completion, name=name, model=engine.loaded.name)
        watch = asyncio.create_task(gone(request.receive))
        streams = False
        try:
            first = await self.first(completion, pieces, watch)
            if completion.request.stream:
                streams = True
                lines = self.events(completion, form, first, pieces)
                return EventStream(lines, end=lambda: engine.cancel(completion))
            return JSONResponse(form.whole(await self.rest(completion, first, pieces, watch)))
        except Disconnected:
            return Response(status_code=499)
        finally:
            watch.cancel()
            if not streams:
                engine.cancel(completion)

    async def first(
        self, completion: Completion, pieces: Pieces, watch: asyncio.Task[None]
    ) -> list[Piece]:
        """The first pieces, on which the answer's status depends."""
        try:
            async with asyncio.timeout(self.wait_seconds):
                return await self.next(completion, pieces, watch)
        except TimeoutError:
            raise ApiError(
                f"the queue was too long: no token after {self.wait_seconds:g} s",
                status=429,
                headers={"retry-after": str(RETRY_SECONDS)},
            ) from None

    async def next(
        self, completion: Completion, pieces: Pieces, watch: asyncio.Task[None] | None = None
    ) -> list[Piece]:
        """The next pieces. Raises `ApiError` if there will be none, `Disconnected`."""
        if watch is not None and pieces.empty():
            getting = asyncio.ensure_future(pieces.get())
            try:
                await asyncio.wait((getting, watch), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    raise Disconnected
                new = getting.result()
            finally:
                getting.cancel()
        else:
            new = await pieces.get()
        good = [piece for piece in new if isinstance(piece, Piece)]
        failure = next((piece for piece in new if isinstance(piece, Failure)), None)
        if failure is not None:
            status = 503 if failure.message == SHUTTING_DOWN else 500
            raise ApiError(failure.message, status=status)
        completion.finished += sum(piece.finish_reason is not None for piece in good)
        return good

    async def rest(
        self,
        completion: Completion,
        first: list[Piece],
        pieces: Pieces,
        watch: asyncio.Task[None],
    ) -> list[Piece]:
        """All pieces."""
        found = first
        while completion.finished < len(completion.choices):
            found += await self.next(completion, pieces, watch)
        return found

    async def events(
        self, completion: Completion, form: Format, first: list[Piece], pieces: Pieces
    ) -> AsyncIterator[bytes]:
        """The lines of a stream."""
        try:
            new = first
            yield b"".join(map(form.chunk, new))
            while completion.finished < len(completion.choices):
                new = await self.next(completion, pieces)
                yield b"".join(map(form.chunk, new))
            yield form.last()
        except ApiError as error:
            yield event(error.body())

    def card(self, engine: Engine) -> dict[str, Any]:
        """A model, as OpenAI lists it."""
        loaded = engine.loaded
        return {
            "id": loaded.name,
            "object": "model",
            "created": self.created,
            "owned_by": "regpt",
            "max_model_len": loaded.config.block_size,
            "system_fingerprint": loaded.fingerprint,
        }

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [*map(self.card, self.engines)]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(self.card(engine_of(request.path_params["name"], self.engines)))

    async def about(self, request: Request) -> Response:
        """GET /about: what the pages show."""
        first, *others = self.engines
        model = self.card(first) | self.facts | {"vocab_size": first.loaded.config.vocab_size}
        compared = [*map(self.card, others)]
        runs = list(self.runs.folders)
        return JSONResponse({"model": model, "compared": compared, "runs": runs})

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        page = render({one.loaded.name: (one.metrics, one.gauges()) for one in self.engines})
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")


def submit(completion: Completion, engine: Engine) -> None:
    """Queue a request, or say when to come again."""
    retry = {"retry-after": str(RETRY_SECONDS)}
    try:
        engine.submit(completion)
    except Full:
        raise ApiError("the queue is full: try again later", status=429, headers=retry) from None
    except Closed:
        raise ApiError(SHUTTING_DOWN, status=503, headers=retry) from None


def make_app(
    engines: Sequence[Engine],
    runs: Runs,
    *,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    facts: dict[str, Any] | None = None,
    wait_seconds: float = WAIT_SECONDS,
    **limits: Any,
) -> ASGIApp:
    """The application, behind its checks, whose `limits` are `Security`'s.

    The first engine's model is the one that pages show and requests without a name mean. `facts`
    are told to the pages: the `argument` that names it to other commands, if one does, and its
    `dtype`.
    """
    facts = {"argument": engines[0].loaded.name, "dtype": "fp32"} | (facts or {})
    facts["key"] = api_key is not None
    server = Server(engines, runs, facts=facts, wait_seconds=wait_seconds)
    app = Starlette(
        routes=[
            *server.routes(),
            *tokenizer_routes(engines),
            *inside_routes(engines),
            *runs.routes(),
            pages.STATIC,
        ],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    opened = pages.open_paths(["/", "/inside", *runs.paths()])
    return Security(app, host=host, api_key=api_key, open_paths=opened, **limits)
