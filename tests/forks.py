"""`regpt ARGUMENTS` by a Python that has imported torch and the rest: see warm_python.py.

It is a process as any other, with an id to kill and an exit code, and begins in milliseconds where
a fresh interpreter imports for three seconds.
"""

import os
import subprocess
from subprocess import CompletedProcess

from torch.distributed import TCPStore


def warm_python() -> str:
    """The executable, which tests/conftest.py has made."""
    return os.environ["WARM_PYTHON"]


class Fork(subprocess.Popen[str]):
    """A command that was started, with these variables beside our own."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        command = [warm_python(), "-m", "regpt", *arguments]
        pipe = subprocess.PIPE
        super().__init__(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | variables)

    def finish(self) -> CompletedProcess[str]:
        """Wait for its end; what it said until then."""
        out, err = self.communicate()
        return CompletedProcess(self.args, self.returncode, out, err)


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
