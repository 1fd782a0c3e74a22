"""`regpt serve`: a completion server with exact answers."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regpt.system.errors import UserError

if TYPE_CHECKING:
    import socket

    from regpt.serve.backend import GPT, WeightFormat
    from regpt.serve.engine import Engine
    from regpt.serve.runs import Runs

POLL_SECONDS = 2.0
FEWEST_CHARACTERS = 16


def serve(
    model: str = "gpt2",
    /,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    dtype: Literal["fp32", "bf16", "int8"] = "fp32",
    rows: int | None = None,
    follow: bool = False,
    compare: str | None = None,
) -> None:
    """Serve a model over HTTP as OpenAI's completions API.

    One seed, one prompt, one text, whatever else the server does: docs/serve.md.

    Args:
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        port: The port to listen on; 0 for any free one.
        host: The address to listen on. Another than this machine's own needs --api-key.
        api_key: What clients must send; better in the variable REGPT_API_KEY, which no list of
            processes shows.
        dtype: Compute dtype: fp32 (exact), bf16, int8.
        rows: Texts written at a time; default: as many as memory allows, up to 16.
        follow: MODEL is a run: serve its newest checkpoint, and each new one as it is saved.
        compare: A second model, say another checkpoint, for requests that name it and for the
            scratchpad, which then shows both on one prompt.
    """
    api_key = api_key if api_key is not None else os.environ.get("REGPT_API_KEY")
    check_address(host, api_key)
    from regpt.serve.server import listen

    with listen(host, port) as listener:
        engines = start_engines(model, compare, dtype=dtype, rows=rows, follow=follow)
        facts = {"argument": None if follow else model, "dtype": dtype}
        run(engines, listener, runs=runs_of(model), host=host, api_key=api_key, facts=facts)


def start_engines(
    model: str, compared: str | None, *, dtype: "WeightFormat", rows: int | None, follow: bool
) -> "list[Engine]":
    """Load the model, and the one it is compared with; each computes in a thread of its own."""
    from regpt.serve.backend import prepare
    from regpt.serve.engine import Engine

    models = [model] if compared is None else [model, compared]
    names = [
        os.path.basename(os.path.normpath(one)) if os.path.isdir(one) else one for one in models
    ]
    if len(set(names)) < len(names):  # a checkpoint of the same step in two runs
        names = models
    if len(set(names)) < len(names):
        raise UserError(f"{model} is the model already: --compare needs another")
    engines = []
    for one, name in zip(models, names, strict=True):
        follows = follow and not engines
        sys.stderr.write(f"regpt: loading {one}\n")
        weights, checkpoint = find(one, follow=follows)
        loaded = prepare(weights, name, dtype=dtype, rows=rows)
        if loaded.note:
            sys.stderr.write(f"regpt: note: {loaded.note}\n")
        engines.append(engine := Engine(loaded))
        engine.start()
        if follows:
            arguments = (engine, one, checkpoint, dtype)
            threading.Thread(target=follow_run, args=arguments, daemon=True).start()
    return engines


def runs_of(model: str) -> "Runs":
    """The run whose page is shown, if the model is one."""
    from regpt.serve.runs import Runs

    return Runs(Path(model)) if (Path(model) / "run.json").is_file() else Runs()


def run(
    engines: "list[Engine]",
    listener: "socket.socket",
    *,
    host: str,
    runs: "Runs",
    api_key: str | None,
    facts: "dict[str, Any]",
) -> None:
    """Serve until interrupted."""
    from regpt.serve.server import address, make_server

    def ready() -> None:
        names = " and ".join(engine.loaded.name for engine in engines)
        rows, dtype = engines[0].loaded.rows, facts["dtype"]
        url = address(host, listener)
        sys.stdout.write(f"serving {names} ({dtype}, {rows} rows) at {url}\n")
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does
    try:
        server = make_server(
            *engines, runs=runs, host=host, api_key=api_key, ready=ready, facts=facts
        )
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        sys.stderr.write("regpt: stopped\n")
        if sys.exc_info()[0] is None and not all(engine.join(0.5) for engine in engines):
            sys.stderr.flush()
            os._exit(0)  # a long step still computes; nobody waits for it


def check_address(host: str, api_key: str | None) -> None:
    """An address that others reach needs a key, and a key some length."""
    from regpt.serve.security import is_loopback

    if api_key is not None and len(api_key) < FEWEST_CHARACTERS:
        raise UserError(
            f"the API key has {len(api_key)} characters, it needs {FEWEST_CHARACTERS} or more"
        )
    if api_key is None and not is_loopback(host):
        raise UserError(f"--host {host} can be reached from elsewhere: give --api-key too")


def find(model: str, *, follow: bool) -> "tuple[GPT, Path | None]":
    """The weights to begin with, and the checkpoint they are from, if a run is followed."""
    from regpt.commands.models import load_model
    from regpt.serve.backend import newest_checkpoint

    if not follow:
        return load_model(model, seed=42), None
    checkpoint = newest_checkpoint(model)
    if checkpoint is None:
        raise UserError(f"{model} has no checkpoint yet: --follow needs a run that has saved one")
    return load_model(str(checkpoint), seed=42), checkpoint


def follow_run(engine: "Engine", run: str, served: "Path", dtype: "WeightFormat") -> None:
    """Hand each new checkpoint of a run to the engine."""
    from regpt.commands.models import load_model
    from regpt.serve.backend import newest_checkpoint, prepare

    pause = threading.Event()
    while not pause.wait(POLL_SECONDS):
        newest = newest_checkpoint(run)
        if newest is None or newest == served:
            continue
        try:
            weights = load_model(str(newest), seed=42)
            loaded = prepare(weights, engine.loaded.name, dtype=dtype, rows=engine.loaded.rows)
        except (UserError, OSError) as error:  # it may have been removed for a newer one
            sys.stderr.write(f"regpt: note: {newest.name} cannot be served: {error}\n")
        else:
            engine.replace(loaded)
            sys.stderr.write(f"regpt: serving {newest.name} ({loaded.fingerprint})\n")
        served = newest
