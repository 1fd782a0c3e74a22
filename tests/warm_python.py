"""A Python that has imported torch and the rest before it begins: an executable, over a server.

A fresh interpreter imports for two to six seconds; this one is a fork of a server that did so once.
It is used as `sys.executable` is, with the same arguments, variables, folder and three streams, and
its end is the fork's. To kill it kills the fork and all that the fork has started; other signals
are handed on. Children that the fork starts with its own `sys.executable` are forks too.

    python warm_python.py FOLDER    puts the executable there, prints its path, serves until stdin
                                    ends; imports when it is first used
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

IMPORTED = (
    "torch", "torch._dynamo", "torch.distributed.fsdp", "transformers.models.gpt2.modeling_gpt2",
    "tyro", "matplotlib.figure", "regpt.commands.train", "regpt.commands.evaluate",
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]) + "\\n"
socket.send_fds(server, [order[:1].encode()], [0, 1, 2])
server.sendall(order[1:].encode())
code = int(server.makefile().read())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Order(NamedTuple):
    """What a client was called with."""

    arguments: list[str]
    folder: str
    variables: dict[str, str]


def import_all() -> None:
    """What the forks shall not import again, as far as it is installed."""
    # asked in the other way CUDA would begin here, and could not be used in any fork
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for name in IMPORTED:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            sys.stderr.write(f"warm_python: {error}\n")
    gc.collect()
    gc.freeze()  # or a collection in a fork would write to every page


def keep(client: socket.socket) -> Order:
    """Fork for a client and end with its fork. Returns in the fork."""
    first, streams, _, _ = socket.recv_fds(client, 1, 3)
    order = Order(*json.loads(first + client.makefile("rb", buffering=0).readline()))
    child = os.fork()
    if child == 0:
        os.setsid()
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return order
    for stream in streams:
        os.close(stream)

    def listen() -> None:
        while number := client.recv(1):
            os.kill(child, number[0])
        os.killpg(child, signal.SIGKILL)  # nobody waits for it any more

    threading.Thread(target=listen, daemon=True).start()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def serve(folder: Path) -> Order:
    """Answer clients until stdin ends. Returns in the forks only."""
    address, client = str(folder / "socket"), folder / "python"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    client.chmod(0o700)
    print(client, flush=True)
    warm = False
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 1.0)
        if sys.stdin in ready:
            sys.exit()
        if listener in ready:
            connection, _ = listener.accept()
            if not warm:
                import_all()
                warm = True
            if os.fork() == 0:
                listener.close()
                return keep(connection)
            connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def become(order: Order) -> None:
    """Be the Python that was called."""
    os.environ.clear()
    os.environ.update(order.variables)
    os.chdir(order.folder)
    places = [place for place in order.variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    kind, *rest = order.arguments
    if kind == "-m":
        sys.argv = rest
        sys.path[:0] = ["", *places]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = order.arguments
        sys.path[:0] = [str(Path(kind).parent), *places]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Serve; in a fork, run and end without taking the imported apart, whose pages are shared."""
    place = Path(sys.argv[1])
    del sys.path[0]
    order = serve(place)
    sys.executable = str(place / "python")
    code: object = 0
    try:
        become(order)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
