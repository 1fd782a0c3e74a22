"""Wrong, slow, huge and many requests; a healthy client is served meanwhile."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import Running, load, read_response, serving

from regpt.commands.serve import check_address
from regpt.serve.security import MOST_BYTES, host_check
from regpt.system.errors import UserError

KEY = "a-key-of-some-length"
GOOD = {"prompt": "a", "max_tokens": 2}


def healthy(running: Running) -> bool:
    """Whether somebody else is answered, soon."""
    began = time.monotonic()
    status, _, _ = running.ask("/v1/completions", GOOD, headers={"Authorization": f"Bearer {KEY}"})
    return status == 200 and time.monotonic() - began < 10


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.2",
        "",
        "[::2]",
        "10.0.0.1",
    ],
)
def test_other_names_are_refused(served: Running, host: str) -> None:
    status, _, answer = served.ask("/v1/models", headers={"Host": host})
    assert status in (400, 403)
    if status == 403:
        assert answer["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8000"])
def test_our_names_are_answered(served: Running, host: str) -> None:
    assert served.ask("/v1/models", headers={"Host": host})[0] == 200


def test_names_of_a_server_for_others() -> None:
    allows = host_check("0.0.0.0")
    assert allows("192.168.1.7")
    assert allows(socket.gethostname().lower())
    assert not allows("evil.example")


def test_two_hosts_or_none_are_refused(served: Running) -> None:
    for head in (b"Host: localhost\r\nHost: evil.example\r\n", b""):
        status, _, _ = served.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n")
        assert status in (400, 403)
    assert served.raw(b"GET /health HTTP/1.0\r\n\r\n")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://localhost:1"])
def test_foreign_pages_are_refused(served: Running, origin: str) -> None:
    status, headers, _ = served.ask("/v1/completions", GOOD, headers={"Origin": origin})
    assert status == 403
    assert not any(name.startswith("access-control") for name in headers)
    status, headers, _ = served.ask("/v1/completions", method="OPTIONS", headers={"Origin": origin})
    assert status == 403


def test_our_own_pages_are_answered(served: Running) -> None:
    origin = f"http://127.0.0.1:{served.port}"
    assert served.ask("/v1/completions", GOOD, headers={"Origin": origin})[0] == 200


def test_headers_of_every_answer(served: Running) -> None:
    for path in ("/health", "/nothing", "/v1/models"):
        _, headers, _ = served.ask(path)
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert "server" not in headers


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server with a key."""
    with serving(load(), api_key=KEY) as running:
        yield running


@pytest.mark.parametrize(
    "key", ["", "Bearer ", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"]
)
def test_the_key_is_asked_for(locked: Running, key: str) -> None:
    paths = ["/v1/models", "/metrics", "/tokenizer_info", "/nothing", "/health/", "//metrics"]
    paths += ["/health/../metrics", "/%2e%2e/metrics", "/v1/completions", "/tokenize"]
    for path in paths:
        body = GOOD if path in ("/v1/completions", "/tokenize") else None
        status, headers, answer = locked.ask(path, body, headers={"Authorization": key})
        assert status == 401, path
        assert headers["www-authenticate"] == "bearer"
        assert answer["error"]["code"] == "invalid_api_key"
    assert locked.ask("/health")[0] == 200


def test_the_key_opens(locked: Running) -> None:
    with locked.client(api_key=KEY) as client:
        assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
    with locked.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_an_open_address_needs_a_key() -> None:
    with pytest.raises(UserError, match="--api-key"):
        check_address("0.0.0.0", None)
    with pytest.raises(UserError, match="16 or more"):
        check_address("127.0.0.1", "short")
    check_address("0.0.0.0", KEY)
    check_address("::1", None)


BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b'{"prompt": NaN}', "NaN"),
    (b'{"temperature": 1e999}', "from 0 to 2"),
    (b'{"seed": ' + b"9" * 10_000 + b"}", "not JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8"),
    (b"[" * 500_000, "deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeply"),
    (b"[]", "object"),
    (b'"a"', "object"),
    (b"null", "object"),
    (b'{"' + b"x" * 100_000 + b'": 1}', "unknown field"),
    (json.dumps({"prompt": "a " * 400_000}).encode(), "256 positions"),
    (json.dumps({"prompt": [1] * 300_000}).encode(), "256 positions"),
    (json.dumps({"prompt": [[1]] * 100_000}).encode(), "at most 256"),
]


@pytest.mark.parametrize(
    ("body", "words"), BAD_BODIES, ids=[str(i) for i in range(len(BAD_BODIES))]
)
def test_bad_bodies(served: Running, body: bytes, words: str) -> None:
    status, _, answer = served.ask("/v1/completions", body)
    assert status == 400
    assert words in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 500


def test_half_a_surrogate_pair_is_text(served: Running) -> None:
    assert (
        served.ask("/v1/completions", b'{"prompt": "\\ud800", "echo": true, "max_tokens": 1}')[0]
        == 200
    )


def test_bodies_are_counted_as_they_come(served: Running) -> None:
    status, _, answer = served.ask("/v1/completions", b'{"prompt": "' + b"a" * MOST_BYTES + b'"}')
    assert status == 413
    assert str(MOST_BYTES) in answer["error"]["message"]
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{served.port}\r\n".encode()
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for _ in range(40):
                connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        assert read_response(connection)[0] in (0, 413)  # 0: reset while we still wrote
    assert healthy(served)


@pytest.mark.parametrize("length", ["99999999999999999999999", "-1", "1e3"])
def test_lengths_that_are_none(served: Running, length: str) -> None:
    status, _, _ = served.ask("/v1/completions", GOOD, headers={"Content-Length": length})
    assert status in (400, 413)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_content_types_are_refused(served: Running, kind: str) -> None:
    status, _, _ = served.ask("/v1/completions", GOOD, headers={"Content-Type": kind})
    assert status == 415


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/completions", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1//models", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/health/", 404),
        ("DELETE", "/v1/models", 405),
        ("TRACE", "/health", 405),
    ],
)
def test_paths_and_methods(served: Running, method: str, path: str, expected: int) -> None:
    status, _, answer = served.ask(path, method=method)
    assert status == expected
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_huge_head(served: Running) -> None:
    data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000
    with served.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        assert read_response(connection)[0] in (0, 400)
    assert served.raw(b"\x16\x03\x01 nonsense\r\n\r\n")[0] == 400
    assert healthy(served)


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    """A server whose patience can be tried in a test."""
    with serving(load(), head_seconds=0.5, body_seconds=0.5, most_connections=60) as running:
        yield running


def test_slow_heads_are_dropped(hasty: Running) -> None:
    with hasty.connect() as silent, hasty.connect() as slow, hasty.connect() as second:
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = second.recv(4096)
        while b'"ok"' not in answer:  # the body may come behind the head
            answer += second.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: aaaaaaaaaaaaaaaa":
                slow.sendall(bytes([byte]))
                second.sendall(bytes([byte]))
                time.sleep(0.03)
        for connection in (silent, slow, second):
            assert read_response(connection)[0] == 0
        assert time.monotonic() - began < 5
    assert healthy(hasty)


def test_half_a_body_is_not_waited_for(hasty: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, _, body = hasty.raw(head + b'Content-Length: 100\r\n\r\n{"prompt": "a')
    assert status == 408
    assert b"after 0.5 s" in body
    with hasty.connect() as connection:  # gone in the middle
        connection.sendall(head + b'Content-Length: 100\r\n\r\n{"prompt": "a')
    assert healthy(hasty)
    hasty.settle()


def test_many_connections_left_open(hasty: Running) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(500):
            stack.enter_context(hasty.connect())
            if number % 100 == 99:
                assert healthy(hasty)
        assert healthy(hasty)


def test_a_busy_connection_is_not_dropped_for_new_ones(hasty: Running) -> None:
    with hasty.client() as client:
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=200, stream=True, logit_bias={"50256": -100}
        )
        next(stream)
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(hasty.connect())
        assert sum(1 for _ in stream) > 20


def cancelled(running: Running) -> int:
    return running.engine.metrics.requests["cancelled"]


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"n": 50, "stream": True}])
def test_a_client_that_goes_ends_its_request(served: Running, fields: dict[str, Any]) -> None:
    before = cancelled(served)
    body = {"prompt": "a", "max_tokens": 255, "logit_bias": {"50256": -100}} | fields
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    with served.connect() as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        if fields["stream"]:
            assert connection.recv(100)
        else:
            time.sleep(0.05)
    served.settle()
    assert cancelled(served) == before + 1


def test_a_slow_reader_holds_nothing_up() -> None:
    with serving(load(), send_buffer=8192, send_seconds=0.5) as running:
        body = {"prompt": ["a"] * 20, "n": 16, "max_tokens": 30, "stream": True, "logprobs": 20}
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        )
        with running.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
            end = time.monotonic() + 20
            while cancelled(running) == 0:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert healthy(running)
        running.settle()
