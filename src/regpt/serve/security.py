"""Who may ask, and how much: checks before any route is looked for, as pure ASGI middleware.

The Host header is checked always: a web page can make a browser send requests to a server on this
machine under its own name (DNS rebinding), and such requests need no Origin. A foreign or `null`
Origin is refused; there is no CORS. With a key, everything asks for it but what is named open.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regpt.serve.answers import error_response
from regpt.serve.request import ApiError

MOST_BYTES = 1 << 20
"""Of a body."""
BODY_SECONDS = 15.0
"""Until a body is there as a whole."""
SEND_SECONDS = 60.0
"""Until a client has taken what was sent."""
OPEN_PATHS = frozenset({"/health"})
"""What is answered without a key."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, reached by nobody else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host(value: str) -> str:
    """The name in a Host header, without its port and an IPv6 address's brackets."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower()


def host_check(bound: str) -> Callable[[str], bool]:
    """Which names a server bound to an address answers to."""
    names = {*LOOPBACK, bound.lower()}
    if is_loopback(bound):
        return lambda name: name in names
    names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def allowed(name: str) -> bool:
        try:  # a page elsewhere cannot be called an address of this machine
            ipaddress.ip_address(name)
        except ValueError:
            return name in names
        return True

    return allowed


@dataclass
class Security:
    """The middleware: `app` sees only requests that pass, with their bodies read."""

    app: ASGIApp
    host: str = "127.0.0.1"
    """What the server is bound to."""
    api_key: str | None = None
    open_paths: frozenset[str] = OPEN_PATHS
    body_seconds: float = BODY_SECONDS
    send_seconds: float = SEND_SECONDS

    def __post_init__(self) -> None:
        self.allows_host = host_check(self.host)
        self.digest = None if self.api_key is None else digest(self.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        careful = self._sender(send)
        try:
            headers = Headers(scope=scope)
            self._check_source(scope, headers)
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                receive = await self._read_body(headers, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, careful)
            return
        except ConnectionError:
            return
        await self.app(scope, receive, careful)

    def _sender(self, send: Send) -> Send:
        """`send` with the headers of every answer, and an end to waiting for slow readers."""

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            async with asyncio.timeout(self.send_seconds):
                await send(message)

        return careful

    def _check_source(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.allows_host(split_host(hosts[0])):
            raise ApiError(
                f"this server does not answer to the name {', '.join(hosts)[:200]!r}",
                status=403,
                code="wrong_host",
            )
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"):
                raise ApiError(
                    f"requests from pages of {origin[:200]!r} are refused",
                    status=403,
                    code="foreign_origin",
                )

    def _check_key(self, path: str, headers: Headers) -> None:
        if self.digest is None or path in self.open_paths:
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(digest(key.strip()), self.digest):
            return
        problem = "wrong" if key else "missing"
        raise ApiError(
            f"the API key is {problem}: send it as Authorization: Bearer KEY",
            status=401,
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    async def _read_body(self, headers: Headers, receive: Receive) -> Receive:
        """The whole body, counted as it comes; a `receive` that gives it at once."""
        close = {"connection": "close"}
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = f"the content type must be application/json, not {kind[:100]!r}"
            raise ApiError(message, status=415, headers=close)
        large = ApiError(f"the body is above {MOST_BYTES} bytes", status=413, headers=close)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > MOST_BYTES:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > MOST_BYTES:
                        raise large
        except TimeoutError:
            raise ApiError(
                f"the body was not there after {self.body_seconds:g} s", status=408, headers=close
            ) from None
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay


def digest(key: str) -> bytes:
    """What of a key is compared: equally long for all."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
