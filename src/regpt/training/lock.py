"""One writer per run: a lock that the system takes back when its holder ends, however it ends.

`flock` on RUN/lock. A pid in a file alone would outlive a SIGKILL and refuse the resume for ever;
the system's lock ends with the process, and the file only says who holds it. The processes of
torchrun are one run: the first, who alone writes, holds the lock for all. Where the system has no
such lock (Windows, some network file systems) there is none.
"""

import os
import platform
from pathlib import Path

from regpt.system.errors import UserError
from regpt.system.files import writing_to


class RunLock:
    """Holds `path` until it is released or the process ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises UserError, naming the holder, if another process has it."""
        self._descriptor: int | None = None
        try:
            import fcntl
        except ImportError:
            return
        with writing_to(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is being trained by {holder}: wait for it or end it, or name "
                "another directory with --out"
            ) from None
        except OSError:  # no locks on this file system
            os.close(descriptor)
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others in; the file stays, as removing it would let two hold two of them."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
