"""The command line: `regpt COMMAND ...`.

Each command is a function in `regpt.commands` (for `train` and `doctor`, a dataclass); tyro turns
its signature into flags and help. Nothing is imported before it is needed, so `regpt --help` is
instant, and a wrong flag is told before torch is loaded: a command imports it when it runs.
Whatever a person can mend ends as one line on stderr and exit code 2.
"""

import argparse
import contextlib
import functools
import inspect
import io
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn, get_origin

from regpt import __version__
from regpt.system.errors import UserError
from regpt.system.malloc import keep_pages
from regpt.system.openmp import spin_briefly

COMMANDS = {
    "train": "train a GPT-2 from random weights: regpt train quickstart",
    "doctor": "before a long run: does it fit, how long, what does it cost, does it learn",
    "replay": "one step of a run again, layer by layer, where its numbers went wrong",
    "prepare": "text files into shards of tokens",
    "data": "the texts of a step: regpt data show RUN --step N; shards: regpt data verify DIR",
    "sample": "let a model continue a prompt",
    "serve": "a completion server with exact answers: OpenAI's API for base models",
    "watch": "a run in a browser, as it grows: curves, samples, time left",
    "evaluate": "loss of a text, HellaSwag, LAMBADA: figures that compare",
    "explain": "look inside a text: probabilities, alternatives, attention",
    "report": "a page of curves, samples and settings of one run or several",
    "runs": "list runs with their best figures",
    "export": "write a model for transformers, CTranslate2 and llama.cpp",
    "parity": "compare with transformers on this machine, number by number",
    "bench": "speed and memory on this machine, beside other systems",
}

WITHOUT_TORCH = ("prepare", "serve", "watch")
"""Commands that do not need it, or say themselves what they load."""

BENCHES = {
    "generate": "writing: tokens a second, ours and others'",
    "train": "a training step: tokens per second, share of the limit, peak memory",
}

USAGE = """\
regpt: GPT-2, reproduced.

usage: regpt COMMAND [ARGUMENTS]

commands:
{commands}

  regpt train quickstart           a small GPT-2 learns real text in two minutes
  regpt sample --model gpt2        the lecture's five samples, from the released weights
  regpt COMMAND --help             the flags of a command
  regpt --version
"""


RESUME = "  regpt train --resume RUN     go on where the run's newest sound checkpoint stands\n"


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    sys.stderr.write(f"regpt: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def first_paragraph(box: str) -> str:
    """The message in tyro's error: the lines before the first rule, without frame and title.

    Where the terminal has no box characters the title stands above a rule of its own.
    """
    lines = []
    for line in box.splitlines()[0 if "╭" in box else 2 :]:
        inside = line.strip().strip("│").strip()
        if set(inside) <= set("─-"):
            if lines:
                break
            continue
        if not line.lstrip().startswith(("╭", "╰")):
            lines.append(inside)
    return " ".join(lines) or box


def usage(target: Any, prog: str) -> str:
    """How a command is called: its name, what stands without a flag, the flags."""
    words = [prog]
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            word = parameter.name.upper()
            word += " ..." if get_origin(parameter.annotation) is tuple else ""
            words.append(word if parameter.default is parameter.empty else f"[{word}]")
    return " ".join([*words, "[FLAGS]"])


def parse(target: Any, arguments: Sequence[str], *, prog: str, **options: Any) -> Any:
    """Let tyro parse; its errors become one line."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(target, args=list(arguments), prog=prog, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = first_paragraph(errors.getvalue())
        stray = message.removeprefix("Unrecognized options: ")
        if stray != message:
            message = f"{prog} does not take {stray}: call it as {usage(target, prog)}"
        fail(f"{message} (see {prog} --help)")


def load_torch() -> None:
    """Import torch, which takes seconds, and say so after one."""
    if "torch" in sys.modules:
        return
    slow = threading.Timer(1.0, sys.stderr.write, ["note: loading torch\n"])
    slow.start()
    try:
        import_module("torch")
    finally:
        slow.cancel()


def run_function(name: str, arguments: Sequence[str], *, prog: str) -> None:
    """A command whose function has the command's name, in a module of that name."""
    function = getattr(import_module(f"regpt.commands.{name}"), name)

    # tyro only parses and calls this: the command runs outside, where what it writes on stderr and
    # its exit code are its own
    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *positional, **named)

    call = parse(bound, arguments, prog=prog)
    if name not in WITHOUT_TORCH:
        load_torch()
    call()


def listing(lines: Mapping[str, str], *, width: int = 10) -> str:
    """Names and what they are, a line each."""
    return "\n".join(f"  {name:<{width}} {text}" for name, text in lines.items())


def run_preset(command: str, arguments: Sequence[str]) -> None:
    """`regpt train PRESET [FLAGS]`; `regpt doctor PRESET [FLAGS]`, with some of its own."""
    if arguments and not {"-h", "--help"} & {*arguments}:
        load_torch()
    from regpt.training.config import RunConfig
    from regpt.training.presets import PRESETS, preset

    if not arguments or arguments[0] in ("-h", "--help"):
        presets = {name: (make.__doc__ or "").strip() for name, make in PRESETS.items()}
        sys.stdout.write(
            f"usage: regpt {command} PRESET [FLAGS]\n\npresets:\n{listing(presets, width=16)}\n\n"
            f"  regpt {command} PRESET --help    every flag, with the preset's values\n"
            f"{RESUME if command == 'train' else ''}"
        )
        if not arguments:
            fail(f"{command} needs a preset: one of {', '.join(PRESETS)}")
        return
    name, *flags = arguments
    base, prog = preset(name), f"regpt {command} {name}"
    if command == "doctor":
        from regpt.commands.doctor import DoctorConfig, doctor

        default = DoctorConfig(**vars(base))
        return doctor(parse(DoctorConfig, flags, prog=prog, default=default))
    from regpt.commands.train import train

    about = (PRESETS[name].__doc__ or "") + " Go on with a run: regpt train --resume RUN"
    train(parse(RunConfig, flags, prog=prog, description=about, default=base))


def run_train(arguments: Sequence[str]) -> None:
    """`regpt train PRESET [FLAGS]`, `regpt train [PRESET] --resume RUN [FLAGS]`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume")
    try:
        found, flags = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        fail("--resume needs the directory of a run")
    if found.resume is None:
        return run_preset("train", arguments)
    load_torch()
    from regpt.commands.train import saved_config, train
    from regpt.training.config import RunConfig

    config = saved_config(found.resume)
    if flags and not flags[0].startswith("-"):
        name = flags.pop(0)
        if name != config.preset:
            run = f"{found.resume} is a run of preset {config.preset}"
            fail(f"{run}, not {name}: leave the preset out")
    train(parse(RunConfig, flags, prog="regpt train --resume RUN", default=config), resume=True)


def run_bench(arguments: Sequence[str]) -> None:
    """`regpt bench NAME [FLAGS]`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: regpt bench NAME [FLAGS]\n\nbenchmarks:\n{listing(BENCHES)}\n")
        return
    name, *flags = arguments
    if name not in BENCHES:
        fail(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHES)}")
    run_function(f"bench_{name}", flags, prog=f"regpt bench {name}")


def dispatch(arguments: Sequence[str]) -> None:
    """Find the command and run it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE.format(commands=listing(COMMANDS)))
        return
    name, *rest = arguments
    if name in ("--version", "-V"):
        sys.stdout.write(f"regpt {__version__}\n")
        sys.stdout.flush()  # the kernels may have to be compiled
        from regpt.fast.kernels.check import kernels_used

        sys.stdout.write(f"C kernels: {kernels_used()}\n")
        return
    if name not in COMMANDS:
        fail(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    keep_pages()
    if name != "bench":  # other systems are measured as they are
        spin_briefly()
    doctor = functools.partial(run_preset, "doctor")
    special = {"train": run_train, "doctor": doctor, "bench": run_bench}
    if name in special:
        special[name](rest)
    else:
        run_function(name, rest, prog=f"regpt {name}")


def leave() -> NoReturn:
    """End a process of torchrun, its work done, without tearing the interpreter down.

    The communication threads of a sharded run can outlive the module that owns them and abort the
    process at exit (seen with gloo, torch 2.13), which torchrun then reports as a failed run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def describe_error(error: OSError | MemoryError | RuntimeError) -> str | None:
    """What the system refused, for a person; None for what only we can mend."""
    if isinstance(error, OSError):
        named = "" if error.filename is None else f"{error.filename}: "
        return f"{named}{error.strerror or error}; choose another place or name"
    refused = ("can't allocate memory", "Cannot allocate memory")  # torch's two ways to say it
    if isinstance(error, MemoryError) or any(words in str(error) for words in refused):
        reason = f" ({error})" if str(error) else ""
        return f"not enough memory{reason}: ask for less at a time"
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `regpt` command."""
    try:
        dispatch(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `regpt sample | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.stderr.write("\nregpt: interrupted\n")
        raise SystemExit(130) from None
    except (OSError, MemoryError, RuntimeError) as error:
        if (message := describe_error(error)) is None:
            raise
        fail(message)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        leave()
