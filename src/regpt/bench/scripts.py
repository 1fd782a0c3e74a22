"""What the scripts in benchmarks/ share: flags, and how they end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from regpt.system.errors import UserError


def script_options(about: str | None, *, seconds: float, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=seconds, help=f"default {seconds:g}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"at most; default {rounds}")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    return parser


def run_script(main: Callable[[], None]) -> None:
    """Run a script: errors and Ctrl-C end it with a line, as they end a command."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        raise SystemExit(130) from None
