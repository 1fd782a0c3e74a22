"""A process with all of regpt imported that runs commands in forks of itself.

A fork costs milliseconds where a fresh interpreter costs two seconds, and what goes wrong in it,
be it a crash, a hang or all the memory there is, ends the fork alone. A fork runs many commands,
one after the other, until one of them goes wrong. One JSON object per line: a request in, the
outcome out.
"""

import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

STRAY = 70
"""The exit code of a command that an exception left."""
COMMANDS_PER_FORK = 100
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_PROF)


def import_all() -> None:
    """Everything a command could need, so that no fork imports it again."""
    import importlib
    import pkgutil

    import huggingface_hub
    import matplotlib.pyplot
    import safetensors.torch
    import torch
    import torch._dynamo  # every optimizer imports it: seconds
    import torch.distributed.tensor
    import typeguard
    import tyro
    from PIL import Image

    import regpt.commands
    from regpt.core.tokenizer import get_tokenizer
    from regpt.fast.kernels.build import unavailable_reason
    from regpt.weights.tokenizer_files import tokenizer_files

    torch.set_num_threads(1)
    for module in pkgutil.iter_modules(regpt.commands.__path__):
        importlib.import_module(f"regpt.commands.{module.name}")
    get_tokenizer().encode("warm")
    tokenizer_files()
    unavailable_reason()  # compiles the kernels, once
    Image.init()
    assert all((huggingface_hub.snapshot_download, matplotlib.pyplot, safetensors.torch, tyro.cli))
    assert all((torch.distributed.tensor, typeguard))


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most since `run` began."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) << 10


def set_up(machine: dict[str, Any]) -> None:
    """The machine a fork believes to be on; for that fork only."""
    from regpt.fast.kernels.build import found_library

    found_library.cache_clear()
    for name, value in machine.get("environment", {}).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if (size := machine.get("file_size")) is not None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    match machine.get("stdout"):
        case "closed":
            os.close(1)
        case "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        case "unread":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)


def run(request: dict[str, Any]) -> dict[str, int]:
    """One command: its files, its limits, how it ended."""
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    told = os.dup(2)
    reader, writer = os.pipe()  # which no limit of files cuts short
    if request["machine"]:
        os.dup2(writer, 2)
        set_up(request["machine"])
    os.close(writer)
    os.chdir(request["cwd"])
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # forget the largest size so far
    before = resident("VmRSS")
    limits = (request["seconds"]["waiting"], request["seconds"]["computing"])
    for timer, seconds in zip(TIMERS, limits, strict=True):
        signal.setitimer(timer, seconds)
    code: Any = 0
    try:
        from regpt.cli import main

        main([os.fsdecode(bytes.fromhex(argument)) for argument in request["arguments"]])
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code
    except BaseException:
        traceback.print_exc()
        code = STRAY
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            traceback.print_exc()
            code = code or STRAY
    for timer in TIMERS:
        signal.setitimer(timer, 0)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    os.dup2(told, 2)
    os.write(2, os.read(reader, 1 << 16))
    os.close(told)
    os.close(reader)
    code = code if isinstance(code, int) else STRAY
    return {"code": code, "memory": max(resident("VmHWM") - before, 0)}


def work(requests: int, answers: int, memory: int) -> None:
    """The fork. Never returns."""
    os.setpgid(0, 0)
    with open("/proc/self/statm", encoding="ascii") as file:
        limit = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with os.fdopen(requests) as lines:
        for line in lines:
            outcome = run(json.loads(line))
            os.write(answers, json.dumps(outcome).encode() + b"\n")
            if outcome["code"] == STRAY:
                break
    os._exit(0)


class Fork:
    """One fork and the pipes to it."""

    def __init__(self, memory: int) -> None:
        requests, self.requests = os.pipe()
        answers, write_answers = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.requests)
            os.close(answers)
            work(requests, write_answers, memory)
        os.close(requests)
        os.close(write_answers)
        self.answers = os.fdopen(answers)
        self.left = COMMANDS_PER_FORK

    def ask(self, line: str) -> str:
        """The outcome of a request; of one that ended the fork, by which signal."""
        os.write(self.requests, line.encode())
        self.left -= 1
        answer = self.answers.readline()
        if not answer:
            self.left = 0
            _, status = os.waitpid(self.child, 0)
            self.child = 0
            answer = json.dumps({"code": os.waitstatus_to_exitcode(status) or STRAY, "memory": 0})
            return answer + "\n"
        self.left = 0 if json.loads(answer)["code"] == STRAY else self.left
        return answer

    def end(self) -> None:
        """End it and what it started."""
        os.close(self.requests)
        self.answers.close()
        if self.child:
            os.killpg(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    import_all()
    answers.write("ready\n")
    answers.flush()
    fork = None
    for line in requests:
        request = json.loads(line)
        if fork is not None and request["machine"]:  # another machine takes another fork
            fork.end()
            fork = None
        if fork is None:
            fork = Fork(request["memory"])
        answers.write(fork.ask(line))
        answers.flush()
        if not fork.left or request["machine"]:
            fork.end()
            fork = None
    if fork is not None:
        fork.end()


if __name__ == "__main__":
    serve()
