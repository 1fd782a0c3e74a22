"""`regpt ARGUMENTS` in a fork of a process that has imported torch and the rest.

It is a process as any other, with an id to kill and an exit code, and begins in milliseconds where
a fresh interpreter imports for three seconds.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "torch._dynamo", "torch.distributed.fsdp", "tyro", "matplotlib.figure"]
    + [f"regpt.commands.{name}" for name in ("train", "evaluate")]
)


def command(arguments: tuple[str, ...], environment: dict[str, str], folder: str) -> None:
    """What the fork does: it writes what it says to files in the folder."""
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    from regpt.cli import main

    main(arguments)


class Fork:
    """A command that was started, with these variables beside our own."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.arguments = arguments
        self._said = tempfile.TemporaryDirectory(prefix="fork-")
        given = (arguments, {**os.environ, **variables}, self._said.name)
        self.process = CONTEXT.Process(target=command, args=given)
        self.process.start()

    def finish(self) -> CompletedProcess[str]:
        """Wait for its end; what it said until then."""
        self.process.join()
        assert self.process.exitcode is not None
        with self._said as folder:
            out, err = (
                path.read_text(encoding="utf-8") if path.exists() else ""
                for path in (Path(folder, name) for name in ("stdout", "stderr"))
            )
        return CompletedProcess(self.arguments, self.process.exitcode, out, err)


def together(processes: int, *arguments: str) -> CompletedProcess[str]:
    """A command on so many processes, which are told what torchrun tells its own."""
    if processes == 1:
        return Fork(*arguments).finish()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "forks",
    }  # fmt: skip
    forks = [
        Fork(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), **told) for rank in range(processes)
    ]
    ends = [fork.finish() for fork in forks]
    out, err = ("".join(getattr(end, name) for end in ends) for name in ("stdout", "stderr"))
    return CompletedProcess(arguments, max(abs(end.returncode) for end in ends), out, err)
