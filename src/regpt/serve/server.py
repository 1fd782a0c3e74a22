"""uvicorn, bounded: how long a request's head may take, how many connections, how it all ends."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from regpt.serve.app import SHUTTING_DOWN, make_app
from regpt.serve.engine import Engine
from regpt.serve.runs import Runs
from regpt.system.errors import UserError

HEAD_SECONDS = 10.0
"""Until the head of a request is there; and how long a connection may say nothing."""
MOST_CONNECTIONS = 512
SPARE_FILES = 64
"""Files a process may open beside its connections."""
GRACE_SECONDS = 1
"""For answers under way, once their requests were ended."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose connections without a request do not stay.

    uvicorn times a connection only between two requests. Here a connection waits for the whole head
    of a request `HEAD_SECONDS`; and where there are too many, the one that has waited longest goes,
    so that a new client is always answered.
    """

    idle: dict["BoundedProtocol", None]
    """Connections that wait for a request, the oldest first; one for all of a server."""
    head_seconds: float
    most_connections: int
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most_connections and self.idle:
            next(iter(self.idle)).drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Stop the clock when a request's head is there."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def drop(self) -> None:
        """Close it without a word."""
        self._stop_waiting()
        self.transport.abort()

    def _wait(self) -> None:
        self._stop_waiting()
        self.idle[self] = None
        self._timer = self.loop.call_later(self.head_seconds, self.drop)

    def _stop_waiting(self) -> None:
        self.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(head_seconds: float, most_connections: int) -> type[BoundedProtocol]:
    """The protocol of one server."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(8, min(most_connections, limit - SPARE_FILES))
    own = {"idle": {}, "head_seconds": head_seconds, "most_connections": most}
    return type("Bounded", (BoundedProtocol,), own)


class HttpServer(uvicorn.Server):
    """Ends what is under way first, with `close`: uvicorn waits for its connections."""

    def __init__(
        self, config: uvicorn.Config, close: Callable[[], None], ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.close, self.ready = close, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Every stream ends with an error, then the connections close."""
        self.close()
        await super().shutdown(sockets=sockets)


def http_server(
    app: ASGIApp,
    *,
    close: Callable[[], None],
    ready: Callable[[], None] = lambda: None,
    head_seconds: float = HEAD_SECONDS,
    most_connections: int = MOST_CONNECTIONS,
) -> HttpServer:
    """A server of an application."""
    config = uvicorn.Config(
        app,
        http=bounded(head_seconds, most_connections),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="error",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(1, head_seconds)),
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=1 << 15,
    )
    return HttpServer(config, close, ready)


def make_server(
    *engines: Engine,
    host: str,
    api_key: str | None = None,
    runs: Runs | None = None,
    app: ASGIApp | None = None,
    ready: Callable[[], None] = lambda: None,
    head_seconds: float = HEAD_SECONDS,
    most_connections: int = MOST_CONNECTIONS,
    **options: Any,
) -> HttpServer:
    """A server over engines, one for each model; `options` go to `make_app`."""
    runs = runs or Runs()
    app = app or make_app(engines, runs, host=host, api_key=api_key, **options)

    def close() -> None:
        for engine in engines:
            engine.close(SHUTTING_DOWN)
        runs.close()

    return http_server(
        app,
        close=close,
        ready=ready,
        head_seconds=head_seconds,
        most_connections=most_connections,
    )


def address(host: str, listener: socket.socket) -> str:
    """Where a browser finds what listens."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UserError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"cannot listen on {host}, port {port}: {reason}; choose another --port"
            raise UserError(message) from None
        listener.listen(1024)
        listener.setblocking(False)
        undo.pop_all()
    return listener
