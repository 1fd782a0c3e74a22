"""rich's console, for lines as they are and for a reader that goes away: `regpt runs | head`."""

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Leaves a closed pipe to the command line; rich would end the process with exit code 1."""

    def say(self, text: str = "") -> None:
        """A line as it is: no markup, no colours, no `:smile:` turned to a face, no wrapping."""
        self.out(text.encode("utf-8", "replace").decode(), highlight=False)  # half a pair is `?`

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
