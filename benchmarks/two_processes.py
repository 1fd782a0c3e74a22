"""Two busy processes on the same cores: what they do together, against one alone.

    python benchmarks/two_processes.py [--seconds 10] [--rounds 2]

Each writes one stream with the random 124M (int8, fp32), or trains the quickstart's model, with all
the cores that torch takes and the settings of the command line. One alone and two at once take
turns. Prints a table and, last, one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from regpt.system.malloc import keep_pages
from regpt.system.openmp import spin_briefly

JOBS = ("int8", "fp32", "train")


def writing(kind: str) -> Callable[[], int]:
    """A function that writes a text and says how many tokens that were."""
    import torch

    from regpt import GPT, GPTConfig, SamplingParams, complete
    from regpt.fast.decoding.decoders import choose_decoder

    torch.manual_seed(0)
    model = GPT(GPTConfig()).eval()
    decoder, _ = choose_decoder(model, engine="fast", dtype=kind)
    params = SamplingParams(max_length=32, num_samples=1, stop_at_eot=False)

    def write() -> int:
        return len(complete(model, [464], params, decoder=decoder)[0]) - 1

    return write


def training() -> Callable[[], int]:
    """A function that takes a step of the quickstart and says how many tokens that were."""
    from regpt.core.train import compute_gradients
    from regpt.system.distributed import World
    from regpt.system.runtime import find_runtime
    from regpt.training.build import StateHooks, build
    from regpt.training.presets import preset

    runtime = find_runtime("cpu")
    config = preset("quickstart").with_batch_tokens(1)
    state = build(config, runtime, World(device=runtime.device))
    hooks, batches = StateHooks(state), state.data.loader.batches(0)

    def step() -> int:
        batch = next(batches)
        compute_gradients(state.model, state.optimizer, batch, state.settings, hooks)
        state.optimizer.step()
        return batch.x.numel()

    return step


def work(job: str) -> None:
    """A process: get ready, wait for a line that says how long, print tokens per second."""
    keep_pages()
    spin_briefly()
    act = training() if job == "train" else writing(job)
    act()
    print("ready", flush=True)
    seconds = float(sys.stdin.readline())
    began, tokens = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        tokens += act()
    print(tokens / (time.monotonic() - began), flush=True)


def at_once(job: str, count: int, seconds: float) -> list[float]:
    """Tokens per second of each of so many processes."""
    command = [sys.executable, __file__, "--work", job]
    pipe = subprocess.PIPE
    crowd = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    for each in crowd:
        assert each.stdout is not None
        if each.stdout.readline() != "ready\n":
            raise SystemExit(f"{job}: a process did not get ready")
    for each in crowd:
        assert each.stdin is not None
        each.stdin.write(f"{seconds}\n")
        each.stdin.flush()
    return [float(each.communicate()[0]) for each in crowd]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    figures = {}
    print("tokens/s    one alone    two at once    together, against one")
    for job in JOBS:
        alone, both = [], []
        for _ in range(given.rounds):
            alone += at_once(job, 1, given.seconds)
            both.append(at_once(job, 2, given.seconds))
        middle = statistics.median(alone)
        pair = [statistics.median(column) for column in zip(*both, strict=True)]
        figures[job] = {"alone": middle, "both": pair, "together": sum(pair) / middle}
        print(f"{job:<8}{middle:13.1f}{pair[0]:9.1f}{pair[1]:7.1f}{sum(pair) / middle:18.2f}")
    print(json.dumps({"benchmark": "two processes", "figures": figures}))


if __name__ == "__main__":
    main()
