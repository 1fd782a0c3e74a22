"""The pages' files and data: headers, paths, keys, a run's lines from where a client stopped."""

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Running, load, serving

from forks import warm_python
from regpt.cli import main
from regpt.core.tokenizer import get_tokenizer
from regpt.evaluation.explain import attention_maps, explain_text
from regpt.serve import pages
from regpt.serve.runs import Runs, Tail

KEY = "a key of some length"
SETTINGS = {"preset": "quickstart", "steps": 100, "data": ["x"], "model": {"vocab_size": 50257}}


def write_run(folder: Path, steps: int = 3) -> Path:
    """A run's record, and lines of its first steps."""
    folder.mkdir(exist_ok=True)
    record = {"config": SETTINGS, "data": {"sources": "x"}, "runtime": "cpu"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(map(line, range(1, steps + 1))))
    return folder


def line(step: int) -> str:
    """One of metrics.jsonl."""
    return json.dumps({"step": step, "loss": 11 - step / 20, "tokens_per_second": 100.0}) + "\n"


def append(folder: Path, text: str) -> None:
    """Add to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a run and a key."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "a run")
    with serving(load(), runs=Runs(folder, poll_seconds=0.05), api_key=KEY) as running:
        yield running


def events(running: Running, name: str, count: int, last: str | None = None) -> list[Any]:
    """The next events of a run's stream, as (id, event, data)."""
    again = "" if last is None else f"Last-Event-ID: {last}\r\n"
    request = f"GET /runs/{name}/events HTTP/1.1\r\nHost: localhost\r\n{again}"
    found: list[Any] = []
    with running.connect() as connection:
        connection.sendall(f"{request}Authorization: Bearer {KEY}\r\n\r\n".encode())
        data = b""
        while len(found) < count:
            part = connection.recv(65536)
            assert part, data
            data += part
            found = [parse(block) for block in data.decode().split("\n\n") if "\nevent: " in block
                     or "event: " in block]  # fmt: skip
    return found[:count]


def parse(block: str) -> tuple[str | None, str, Any]:
    """An event."""
    fields = dict(one.split(": ", 1) for one in block.replace("\r", "").split("\n") if ": " in one)
    return fields.get("id"), fields["event"], json.loads(fields["data"])


def test_every_file_is_answered_without_a_key_and_with_its_type(paged: Running) -> None:
    assert {"run.html", "base.css", "run.js", "icon.svg"} <= set(pages.files())
    for name, data in pages.files().items():
        status, headers, _ = paged.ask(f"/static/{name}")
        assert status == 200, name
        assert headers["content-type"].split(";")[0] == pages.KINDS[Path(name).suffix]
        assert headers["content-length"] == str(len(data))


@pytest.mark.parametrize("path", ["/", "/inside", "/runs/a%20run", "/static/base.css"])
def test_headers(paged: Running, path: str) -> None:
    status, headers, _ = paged.ask(path)
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_no_page_has_script_or_style_of_its_own_or_asks_elsewhere() -> None:
    for name, data in pages.files().items():
        text = data.decode()
        if name.endswith(".html"):
            assert "<script>" not in text
            assert "<style" not in text
            assert " style=" not in text
            assert not re.search(r"\son\w+=", text)
        if not name.endswith(".svg"):
            assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, name


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2fapp.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/base.css%00.html",
        "/static/base.css/",
        "/static/",
        "/runs/..%2f..",
        "/runs/%2e%2e/events",
    ],
)
def test_path_tricks_are_refused(paged: Running, path: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    status, _, answer = paged.ask(path, headers=headers)
    assert status == 404
    assert answer["error"]["message"]
    assert paged.ask(path)[0] in (401, 404)


def test_the_vocabulary_has_every_tokens_bytes(paged: Running) -> None:
    status, headers, found = paged.ask("/vocabulary", headers={"Authorization": f"Bearer {KEY}"})
    assert status == 200
    assert "max-age" in headers["cache-control"]
    assert len(found) == 50257
    assert found[262] == " the"
    tokens = get_tokenizer().encode("日本 🙂")
    assert "".join(found[one] for one in tokens).encode("latin-1").decode() == "日本 🙂"


def inside(paged: Running, path: str, **body: Any) -> tuple[int, Any]:
    """Look inside a text."""
    headers = {"Authorization": f"Bearer {KEY}"}
    status, _, answer = paged.ask(f"/inside/{path}", body, headers=headers)
    return status, answer


def test_inside_a_text_is_what_explain_finds(paged: Running) -> None:
    gpt, ids = paged.engine.loaded.gpt, get_tokenizer().encode("Hello, I am 日本")
    status, found = inside(paged, "text", prompt="Hello, I am 日本")
    assert status == 200
    assert found["tokens"] == ids
    places = explain_text(gpt, ids, top=10)
    for place, one in zip(places, found["places"], strict=True):
        assert (place.probability, place.rank) == (one["probability"], one["rank"])
        assert place.alternatives == [(token, chance) for token, chance in one["likely"]]
    assert len(found["lens"]) == found["layers"] + 1
    for place, (token, chance, actual) in zip(places, found["lens"][-1], strict=True):
        assert token == place.alternatives[0][0]
        assert chance == pytest.approx(place.alternatives[0][1], rel=1e-5)
        assert actual == (place.probability and pytest.approx(place.probability, rel=1e-5))
    status, found = inside(paged, "attention", prompt="Hello, I am 日本", layer=1)
    maps = attention_maps(gpt, ids, layer=1)
    data = np.frombuffer(base64.b64decode(found["maps"]), np.uint8).reshape(maps.shape)
    assert found["size"] == len(ids) + 1
    assert np.abs(data / 255 - maps.numpy()).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("text", {"prompt": ""}, "has 0 tokens: give 1 to 255"),
        ("text", {"prompt": "a b" * 300}, "give 1 to 255"),
        ("text", {"promt": "a"}, "did you mean prompt"),
        ("attention", {"prompt": "a", "layer": 2}, "layer must be from 0 to 1"),
        ("attention", {"prompt": "a"}, "layer must be from 0 to 1"),
    ],
)
def test_inside_says_what_is_wrong(
    paged: Running, path: str, body: dict[str, Any], message: str
) -> None:
    status, answer = inside(paged, path, **body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_data_needs_the_key(paged: Running) -> None:
    assert paged.ask("/inside/text", {"prompt": "a"})[0] == 401
    for path in ("/about", "/vocabulary", "/runs/a%20run/events"):
        assert paged.ask(path)[0] == 401
    status, _, found = paged.ask("/about", headers={"Authorization": f"Bearer {KEY}"})
    assert status == 200
    assert found["runs"] == ["a run"]
    assert found["model"]["id"] == "tiny"


def test_a_stream_goes_on_where_a_client_stopped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with serving(load(), runs=Runs(folder, poll_seconds=0.05), api_key=KEY) as running:
        record, first = events(running, "run", 2)
        assert record[0] is None
        assert record[1] == "record"
        assert record[2]["steps"] == 100
        assert record[2]["levels"][-1]["name"].startswith("ln 50257")
        assert [one["step"] for one in first[2]["lines"]] == [1, 2, 3]
        size = (folder / "metrics.jsonl").stat().st_size
        assert first[0].split("-")[0] == str(size)
        append(folder, line(4) + "not json\n" + line(5) + '{"step": 6, "lo')
        _, second = events(running, "run", 2, last=first[0])
        assert [one["step"] for one in second[2]["lines"]] == [4, 5]
        append(folder, 'ss": 1}\n')
        _, third = events(running, "run", 2, last=second[0])
        assert [one["step"] for one in third[2]["lines"]] == [6]
        # a resume writes another file: what was read before counts no more
        (folder / "metrics.jsonl").rename(folder / "old")
        (folder / "metrics.jsonl").write_text("".join(map(line, range(1, 9))))
        _, again, all_lines = events(running, "run", 3, last=third[0])
        assert again[1] == "again"
        assert len(all_lines[2]["lines"]) == 8
        # an id that is none is the beginning
        _, begun = events(running, "run", 2, last="9" * 30)
        assert len(begun[2]["lines"]) == 8


def test_a_stream_ends_with_the_server(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with serving(load(), runs=Runs(folder), api_key=KEY) as running:
        ended = threading.Event()

        def listen() -> None:
            with running.connect() as connection:
                head = "GET /runs/run/events HTTP/1.1\r\nHost: localhost\r\n"
                connection.sendall(f"{head}Authorization: Bearer {KEY}\r\n\r\n".encode())
                while connection.recv(65536):
                    pass
            ended.set()

        listener = threading.Thread(target=listen)
        listener.start()
        time.sleep(0.3)
        begun = time.monotonic()
        running.stop()
        assert ended.wait(5)
        assert time.monotonic() - begun < 5
        listener.join()


def test_a_damaged_record_is_told_not_raised(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "run.json").write_text("{")
    with serving(load(), runs=Runs(folder, poll_seconds=0.05), api_key=KEY) as running:
        record, _ = events(running, "run", 2)
        assert "is damaged" in record[2]["error"]


def test_a_tail_reads_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_bytes(b"one\ntw")
    assert tail.read() == (False, [b"one"])
    assert tail.read() == (False, [])
    with path.open("ab") as file:
        file.write(b"o\n")
    assert tail.read() == (False, [b"two"])
    path.write_bytes(b"a\n")  # shorter: another beginning
    assert tail.read() == (True, [b"a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no run"),
        (["RUN", "--port", "99999"], "cannot listen"),
        (["RUN", "--host", "0.0.0.0"], "give --api-key"),
        (["RUN", "--api-key", "short"], "5 characters"),
        ([], "Missing"),
    ],
)
def test_watch_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = str(write_run(tmp_path / "run"))
    with pytest.raises(SystemExit) as stop:
        main(["watch", *(run if one == "RUN" else one for one in arguments)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_watch_shows_a_run_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    command = [warm_python(), "-m", "regpt", "watch", str(run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told.startswith("watching run at http://127.0.0.1:")
        assert told.endswith("/runs/run\n")
        port = int(told.split(":")[2].split("/")[0])
        running = Running(None, port, process.terminate)  # pyright: ignore[reportArgumentType]
        status, headers, _ = running.ask("/")
        assert (status, headers["location"]) == (307, "runs/run")
        assert running.ask("/runs/run")[0] == 200
        assert running.ask("/about")[2] == {"model": None, "runs": ["run"]}
        assert [one[1] for one in events(running, "run", 2)] == ["record", "lines"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
