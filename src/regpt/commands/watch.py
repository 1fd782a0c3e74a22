"""`regpt watch`: a run in a browser, as it grows."""

import os
import sys
import threading
from pathlib import Path

from regpt.commands.serve import check_address


def watch(
    run: str,
    /,
    *,
    port: int = 8001,
    host: str = "127.0.0.1",
    api_key: str | None = None,
) -> None:
    """Show a run's curves and samples in a browser, as they grow.

    Only the run's files are read: no model is loaded, and the training is not touched.

    Args:
        run: The directory of a run.
        port: The port to listen on; 0 for any free one.
        host: The address to listen on. Another than this machine's own needs --api-key.
        api_key: What the page asks a person for; better in the variable REGPT_API_KEY.
    """
    api_key = api_key if api_key is not None else os.environ.get("REGPT_API_KEY")
    check_address(host, api_key)
    slow = threading.Timer(1.0, sys.stderr.write, [f"regpt watch: opening {run}\n"])
    slow.start()
    try:
        from regpt.serve.server import address, listen
        from regpt.serve.watch import make_watch
        from regpt.training.run_dir import RunDirectory
    finally:
        slow.cancel()
    RunDirectory(Path(run)).read_record()
    with listen(host, port) as listener:
        name = Path(run).resolve().name

        def ready() -> None:
            sys.stdout.write(f"watching {name} at {address(host, listener)}/runs/{name}\n")
            sys.stdout.flush()

        try:
            make_watch(Path(run), host=host, api_key=api_key, ready=ready).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            sys.stderr.write("regpt: stopped\n")
