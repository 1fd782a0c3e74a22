"""The process that one part of `benchmarks/gpu.py` lives in.

    python -m gpu_parts.part module:function SETTINGS_AS_JSON

Calls `function(part)`, and writes what it finds on stdout as it comes, one JSON object a line:

    {"row": {...}}    a line of the part's table
    {"note": "..."}   something to say below it
    {"machine": {...}, "describe": "..."}   what the first part found out for the others
    {"end": "..."}    last: "done", "skipped: ..." or "failed: ..."

What libraries print goes to stderr. A package that is not there skips the part.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).parents[2]


@dataclass(kw_only=True)
class Part:
    """What a part is told, and where it says what it found."""

    out: TextIO
    small: bool
    """On a CPU, with tiny models: every line of code, no figure that means anything."""
    folder: str
    """An empty folder that goes away afterwards; all parts share it."""
    machine: dict = field(default_factory=dict)
    """What the first part found: `Machine.to_json()`."""

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return "cpu" if self.small else "cuda"

    @property
    def data(self) -> list[str]:
        """A text to train on."""
        return [str(REPOSITORY / "docs" / "architecture.md")] if self.small else ["pydocs"]

    def row(self, **cells: object) -> None:
        """A line of the table; its keys are the columns."""
        self._write({"row": cells})

    def compared(self, what: str, *, agrees: bool, measured: str, required: str) -> None:
        """A line of a comparison."""
        verdict = "agrees" if agrees else "DIFFERS"
        self.row(what=what, verdict=verdict, measured=measured, required=required)

    def note(self, text: str) -> None:
        """One line below the table."""
        self._write({"note": " ".join(text.split())})

    def found_machine(self, machine: dict, describe: str) -> None:
        """What the later parts, and the results' head, shall know."""
        self._write({"machine": machine, "describe": describe})

    def end(self, text: str) -> None:
        """How it went."""
        self._write({"end": " ".join(text.split())})

    def _write(self, facts: dict) -> None:
        self.out.write(json.dumps(facts) + "\n")
        self.out.flush()


def main() -> None:
    """Run the part that the arguments name."""
    place, settings = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    part = Part(out=out, **json.loads(settings))
    module, _, name = place.rpartition(":")
    try:
        getattr(import_module(module), name)(part)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        part.end(f"skipped: the package {package} is not installed")
    except Exception as error:  # told to the parent; the whole of it is in the log
        first = (str(error).strip() or "no message").partition("\n")[0]
        part.end(f"failed: {type(error).__name__}: {first}")
        raise
    else:
        part.end("done")


if __name__ == "__main__":
    main()
