"""How it ends, how it refuses, and the command itself."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import load, serving, tiny

from forks import warm_python
from regpt.serve import engine as engine_module
from regpt.training.checkpoint import Snapshot, write_checkpoint

LONG: Any = {"model": "tiny", "prompt": "a", "max_tokens": 255, "logit_bias": {"50256": -100}}


def test_streams_end_with_an_error() -> None:
    with serving(load(rows=2)) as running, running.client() as client:
        stream = client.completions.create(**LONG, n=100, stream=True)
        next(stream)
        whole: list[Exception] = []

        def wait() -> None:
            try:
                client.completions.create(**LONG, n=100)
            except openai.APIError as error:
                whole.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while len(running.engine._jobs) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        running.stop()
        assert time.monotonic() - began < 8  # two seconds on an idle machine
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        waiting.join()
        assert isinstance(whole[0], openai.InternalServerError)
        assert whole[0].status_code == 503


def test_a_full_queue_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MOST_JOBS", 2)
    with serving(load(rows=1)) as running, running.client() as client:
        stream = client.completions.create(**LONG, n=100, stream=True)
        threading.Thread(
            target=lambda: running.ask("/v1/completions", LONG | {"n": 100}), daemon=True
        ).start()
        while len(running.engine._jobs) < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**LONG)
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert running.engine.metrics.requests["refused"] == 1
        stream.close()
        running.stop()


def test_waiting_ends() -> None:
    with serving(load(rows=1), wait_seconds=0.5) as running, running.client() as client:
        stream = client.completions.create(**LONG, n=60, stream=True)
        with pytest.raises(openai.RateLimitError, match="too long"):
            client.completions.create(**LONG)
        stream.close()
        running.settle()
        assert running.engine.metrics.requests["cancelled"] == 2


def test_a_failing_step_ends_its_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(load(rows=2)) as running, running.client() as client:
        backend = running.engine.loaded.backend
        step, left = backend.step, [3]

        def failing(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise MemoryError("for this test")
            return step(*arguments)

        before = client.completions.create(**LONG | {"max_tokens": 3, "seed": 1}).choices
        left[0] = 3
        monkeypatch.setattr(backend, "step", failing)
        with pytest.raises(openai.InternalServerError, match="the server failed"):
            client.completions.create(**LONG)
        left[0] = 3
        with pytest.raises(openai.APIError, match="the server failed"):
            list(client.completions.create(**LONG, stream=True))
        assert client.completions.create(**LONG | {"max_tokens": 3, "seed": 1}).choices == before
        running.settle()


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [warm_python(), "-m", "regpt", "serve", *arguments, "--port", "0", "--rows", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_follows_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def save(step: int) -> None:
        model = tiny(seed=step)
        snapshot = Snapshot(
            model=model.state_dict(),
            config=vars(model.config),
            optimizer={},
            progress={"step": step},
            val_loss=None,
        )
        write_checkpoint(run / "checkpoints", snapshot, keep=2)

    (run / "checkpoints").mkdir(parents=True)
    save(1)
    process = start(str(run), "--follow")
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == f"regpt: loading {run}\n"
        line = process.stdout.readline()
        assert line.startswith("serving run (fp32, 2 rows) at http://127.0.0.1:")
        client = openai.OpenAI(base_url=line.split()[-1] + "/v1", api_key="none")
        with client:
            body: Any = {"model": "run", "prompt": "the", "seed": 1, "max_tokens": 5}
            old = client.completions.create(**body)
            save(2)
            new, end = old, time.monotonic() + 60
            while new.system_fingerprint == old.system_fingerprint:
                assert time.monotonic() < end
                time.sleep(0.2)
                new = client.completions.create(**body)
            assert new.choices != old.choices
            stream = client.completions.create(
                **body | {"max_tokens": 250, "n": 100}, stream=True, logit_bias={"50256": -100}
            )
            next(stream)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 20  # two seconds on an idle machine
        errors = process.stderr.read()
        assert "regpt: serving step-00000002" in errors
        assert errors.endswith("regpt: stopped\n")
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_everything_soon(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    process = start(str(tmp_path / "model"))
    ends: list[str] = []
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1] + "/v1"
        begun = threading.Barrier(5)

        def ask() -> None:
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                begun.wait()
                try:
                    while True:
                        client.completions.create(
                            model="model", prompt="the", max_tokens=250, n=100
                        )
                except openai.InternalServerError as error:
                    ends.append(f"{error.status_code} {error.message}")
                except openai.APIConnectionError:  # it was between two requests
                    ends.append("closed")

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        begun.wait()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        status = process.wait(30)
        assert time.monotonic() - began < 20  # two seconds on an idle machine
    finally:
        process.kill()
        _, errors = process.communicate()
    assert len(ends) == 4
    assert any("503" in end and "shutting down" in end for end in ends)
    assert all("503" in end or end == "closed" for end in ends)
    assert status == 0
    assert errors.endswith("regpt: stopped\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt2", "--host", "0.0.0.0"], "--api-key"),
        (["./nowhere"], "no such directory"),
        (["gpt2", "--follow"], "no checkpoint"),
        (["gpt2", "--port", "99999"], "--port"),
        (["gpt2", "--compare", "gpt2"], "needs another"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], words: str, capsys: Any) -> None:
    from regpt.cli import main

    with pytest.raises(SystemExit) as stop:
        main(
            ["serve", "--port", "0", *arguments]
            if "--port" not in arguments
            else ["serve", *arguments]
        )
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_importing_regpt_does_not_import_the_server() -> None:
    code = (
        "import sys, regpt, regpt.cli, regpt.commands.serve; print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", f"import json; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"starlette", "uvicorn", "torch"} & set(json.loads(done.stdout))
