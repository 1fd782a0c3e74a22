"""A real server on a free port, over a tiny random GPT, and ways to ask it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import torch
from torch import nn

from regpt.core.kv_cache import PlainDecoder
from regpt.core.model import GPT, GPTConfig
from regpt.serve.backend import AloneBackend, Loaded, prepare
from regpt.serve.engine import Engine
from regpt.serve.server import listen, make_server

CONFIG = GPTConfig(block_size=256, n_layer=2, n_head=2, n_embd=32)


def tiny(seed: int = 0, *, config: GPTConfig = CONFIG) -> GPT:
    """A GPT whose texts are neither uniform nor certain."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.35)
    return model


def load(model: GPT | None = None, *, rows: int = 4, name: str = "tiny") -> Loaded:
    """Ready to serve."""
    return prepare(model or tiny(), name, dtype="fp32", rows=rows)


def load_alone(model: GPT, *, rows: int = 4) -> Loaded:
    """The same through the plain path, every text by itself."""
    decoder = PlainDecoder(model)
    backend = AloneBackend(decoder, rows, dtype="fp32")
    return Loaded(
        name="tiny",
        gpt=model,
        backend=backend,
        rows=rows,
        config=model.config,
        fingerprint="fp_plain",
    )


class Running:
    """A server that runs, and ways to ask it."""

    def __init__(self, engine: Engine, port: int, stop: Callable[[], None]) -> None:
        self.engine, self.port, self.stop = engine, port, stop

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own."""
        settings = {"api_key": "none", "max_retries": 0, "timeout": 120} | options
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **settings)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes; status, headers and body of what comes back before the connection closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_response(connection)

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """A request with any headers; its JSON (or text)."""
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        method = method or ("GET" if body is None else "POST")
        fields = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        fields |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        status, found, answer = self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        is_json = found.get("content-type", "").startswith("application/json")
        return status, found, json.loads(answer) if is_json else answer.decode()

    def settle(self) -> None:
        """Wait until no row is in use, and nothing is kept of any request."""
        engine, end = self.engine, time.monotonic() + 60
        while engine.scheduler.busy or engine.scheduler.waiting or engine._jobs:
            assert time.monotonic() < end, "a row leaked"
            time.sleep(0.01)
        assert not engine._owners
        assert not engine._last_token


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """A response up to the connection's end; status 0 if it closed without a word."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    if not data:
        return 0, {}, b""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


@contextlib.contextmanager
def serving(
    loaded: Loaded, *compared: Loaded, send_buffer: int = 0, **options: Any
) -> Iterator[Running]:
    """uvicorn in a thread on a free port."""
    engines, started = [Engine(one) for one in (loaded, *compared)], threading.Event()
    for engine in engines:
        engine.start()
    listener = listen("127.0.0.1", 0)
    if send_buffer:  # of each connection, in the system
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listener.getsockname()[1]
    settings = {"host": "127.0.0.1", "ready": started.set} | options
    server = make_server(*engines, **settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        assert all(engine.join(10) for engine in engines)

    assert started.wait(10)
    try:
        yield Running(engines[0], port, stop)
    finally:
        stop()
