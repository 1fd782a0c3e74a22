"""The process that one benchmarked system lives in: it loads, then answers calls until told to end.

Orders come in on stdin and answers go out on stdout, one JSON object a line:

    {"load": "module:function", "settings": {...}, "ours": false}  ->  {"ready": true}
    {"job": {...}, "once": false}  ->  {"seconds": [...], "peak_memory_bytes": N, "facts": {...}}

`function(**settings)` loads the system and returns its `call(**job)`. `module` may be the path of a
script. A call may return facts, JSON values; its fact `parts`, seconds by name, is what it timed
itself. Time is taken here, around each call, so no pipe is in it. Whatever fails is answered as
{"fault": "one line"}. A worker that waits blocks in a read and uses no processor; when its parent
is gone it reads the end of the file and ends.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module

from regpt.system.malloc import keep_pages
from regpt.system.memory import peak_memory, uses_cuda

REPEAT_SECONDS = 1.0
"""A short job is done again until this time is over,"""
MOST_REPEATS = 8
"""but at most so often."""

Facts = Mapping[str, object]
Call = Callable[..., Facts | None]
"""One job of a system; returns facts that go into the answer, or None."""


def load(place: str, settings: Facts) -> Call:
    """Import `module:function` and let it load the system."""
    module, _, name = place.rpartition(":")
    if module.endswith(".py"):
        return runpy.run_path(module)[name](**settings)
    return getattr(import_module(module), name)(**settings)


def synchronize() -> None:
    """Wait for the GPU, if this process has used one."""
    if uses_cuda():
        sys.modules["torch"].cuda.synchronize()


def timed(call: Call, job: Facts, *, once: bool) -> dict[str, object]:
    """Do a job, once or for about a second; the answer, with the facts of the last time."""
    seconds, facts = [], {}
    while not seconds or not (
        once or sum(seconds) >= REPEAT_SECONDS or len(seconds) == MOST_REPEATS
    ):
        synchronize()
        clock = time.perf_counter()
        facts = dict(call(**job) or {})
        synchronize()
        seconds.append(time.perf_counter() - clock)
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(), "facts": facts}


def in_one_line(error: BaseException) -> str:
    """What went wrong, for a table's footnote."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name.partition('.')[0]} is not installed"
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def serve() -> None:
    """Load what the first line names, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(facts: Facts) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    call: Call | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if call is None:
                if order["ours"]:
                    keep_pages()  # as the command line does
                call = load(order["load"], order["settings"])
                answer({"ready": True})
            else:
                answer(timed(call, order["job"], once=order["once"]))
        except Exception as error:  # told to the parent, which leaves this system out
            answer({"fault": in_one_line(error)})
            return


if __name__ == "__main__":
    serve()
