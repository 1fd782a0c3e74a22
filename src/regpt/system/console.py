"""rich's console, for a reader that goes away: `regpt runs | head`."""

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Leaves a closed pipe to the command line; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
