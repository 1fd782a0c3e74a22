"""What the benchmarks tell while they run: what is being done, and every row when it is there."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence

from regpt.bench.rows import Row, duration, rate
from regpt.system.console import Console
from regpt.system.errors import UserError


class Faults(list[str]):
    """What is left out and why: told at once, and kept for the notes under the table."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell = tell

    def append(self, text: str, /) -> None:
        """Tell it, and keep it."""
        self.tell(f"note: {text}")
        super().append(text)


class Telling:
    """Tells on stderr, in a log as on a terminal, and keeps the rows so far.

    `save` is given all rows whenever one has a new figure: an interrupted benchmark loses none.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.status = self.console.status("measuring the machine")
        self.rows: dict[tuple[str, str, str, str | None], Row] = {}
        self.save: Callable[[Sequence[Row]], object] = lambda rows: None
        self.faults = Faults(self.line)
        self._told: set[str] = set()

    def line(self, text: str) -> None:
        """A line of its own, above what is being done."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def observe(self, text: str) -> None:
        """What is being done now; a log gets a line for each thing, not for each time."""
        if self.console.is_terminal:
            self.status.update(text)
        elif text not in self._told:
            self._told.add(text)
            self.line(text)

    def found(self, row: Row) -> None:
        """A row has a new figure; its first is told."""
        key = row.job, row.system, row.dtype, row.engine
        new, self.rows[key] = key not in self.rows, row
        if new:
            title = " ".join(part for part in (row.system, row.engine, row.dtype) if part)
            self.line(
                f"  {row.job}: {title}: {duration(row.seconds)}, "
                f"{rate(row.tokens_per_second)} tokens/s"
            )
        self.save(list(self.rows.values()))

    @contextlib.contextmanager
    def under_way(self) -> Iterator[list[bool]]:
        """While measuring. Ctrl-C or SIGTERM ends it; if there are rows, the list gets an entry."""

        def stop(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        stopped: list[bool] = []
        try:
            with self.status:
                self.observe("measuring the machine")
                yield stopped
        except KeyboardInterrupt:
            if not self.rows:
                raise
            self.faults.append("interrupted: what was measured until then")
            stopped.append(True)
        finally:
            signal.signal(signal.SIGTERM, before)


def check_limits(rounds: int, seconds: float | None, threads: int | None) -> None:
    """Refuse limits that are none."""
    if rounds < 1 or (seconds is not None and not 0 <= seconds < float("inf")):
        raise UserError(f"rounds must be at least 1 and seconds not negative: {rounds}, {seconds}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
