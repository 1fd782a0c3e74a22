"""Three more figures of writing: growth with length, the start, and what int8 costs in quality.

    python benchmarks/decoding.py growth                       ms per token against position
    python benchmarks/decoding.py start                        command to first token, and where
    python benchmarks/decoding.py quality RUN --data FILE      bf16 and int8 against fp32

Each prints a table and, last, one JSON object. The 124M model has random weights; quality wants a
trained one, and takes its own validation text: the last tenth of FILE.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from regpt.bench.harness import Benchmark, Job
from regpt.bench.results import usual_columns
from regpt.bench.scripts import run_script, script_options
from regpt.bench.worker import System

KINDS = ("fp32", "bf16", "int8")
POSITIONS = (10, 100, 250, 500, 1000)
PROMPT = "Hello, I'm a language model,"
Parts = dict[str, dict[str, float]]


def load_steps(dtype: str) -> Callable[[int], Parts]:
    """A step at every position, one after the other, so that a busy moment hits all."""
    import torch

    from regpt import GPT, GPTConfig
    from regpt.fast.decoding.decoders import KernelDecoder, choose_decoder
    from regpt.fast.decoding.kernel_model import KernelCache

    torch.manual_seed(0)
    model = GPT(GPTConfig()).eval()
    decoder, note = choose_decoder(model, engine="fast", dtype=dtype)  # pyright: ignore
    if note:
        raise ValueError(note)
    assert isinstance(decoder, KernelDecoder)
    kernel = decoder.kernel

    def call(rows: int) -> Parts:
        cache = KernelCache(model.config, rows=rows, length=1024, dtype=kernel.cache_dtype)
        cache.leaders = [0] * rows  # rows of one prompt
        idx = torch.zeros(rows, 1, dtype=torch.int64)
        seconds = {}
        for position in POSITIONS:
            cache.lengths = cache.shared = [position] * rows
            clock = time.perf_counter()
            kernel.logits(idx, cache)
            seconds[f"at {position}"] = time.perf_counter() - clock
        return {"parts": seconds}

    return call


def growth(bench: Benchmark) -> None:
    """Seconds per step at a position, 1 and 5 rows."""
    systems = [
        System(
            name="regpt",
            dtype=kind,
            load=f"{__file__}:load_steps",
            settings={"dtype": kind},
            ours=True,
        )
        for kind in KINDS
    ]
    with bench.loaded(systems) as workers:
        for rows in (1, 5):
            name = f"{rows} row{'s' if rows > 1 else ''}"
            job = Job(name=name, tokens=rows * len(POSITIONS), arguments={"rows": rows})
            bench.run(workers, job)


STAGES = """
import time; begin = time.perf_counter()
import torch; first = time.perf_counter()
from regpt.cli import *; from regpt import GPT, SamplingParams, get_tokenizer
from regpt.fast.decoding.decoders import choose_decoder
from regpt.fast.decoding.drafters import choose_drafter
from regpt.fast.decoding.speculative import generate_steps; second = time.perf_counter()
model = GPT.from_pretrained(MODEL); third = time.perf_counter()
decoder, _ = choose_decoder(model, engine="auto", dtype="fp32")
drafter = choose_drafter(decoder, "auto", rows=1); fourth = time.perf_counter()
params = SamplingParams(max_length=256, num_samples=1)
next(generate_steps(model, [get_tokenizer().encode("Hello, I'm a language model,")], params,
     decoder=decoder, drafter=drafter)); fifth = time.perf_counter()
print(first - begin, second - first, third - second, fourth - third, fifth - fourth)
"""
STAGE_NAMES = ("import torch", "import regpt", "read weights", "pack", "first token")


def load_stages(model: str) -> Callable[[], Parts]:
    """The start of `regpt sample` in its stages, as a process of its own."""

    def call() -> Parts:
        code = STAGES.replace("MODEL", repr(model))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        parts = map(float, done.stdout.split())
        return {"parts": dict(zip(STAGE_NAMES, parts, strict=True))}

    return call


def load_command(model: str) -> Callable[[], Parts]:
    """`regpt sample --stream`, to its first token and to its end."""
    command = [sys.executable, "-m", "regpt", "sample", "--stream", "--model", model]

    def call() -> Parts:
        clock = time.perf_counter()
        with subprocess.Popen([*command, "--max-length", "64"], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.read(len(PROMPT) + 1)  # the prompt, and one byte more
            first = time.perf_counter() - clock
            child.stdout.read()
        return {"parts": {"first token": first}}

    return call


def start(bench: Benchmark) -> None:
    """Seconds from the command to the first token, files in the cache; and its stages."""
    import torch

    from regpt import GPT, GPTConfig

    with tempfile.TemporaryDirectory() as folder:
        settings = {"model": f"{folder}/model"}
        torch.manual_seed(0)
        GPT(GPTConfig()).save_pretrained(settings["model"])
        systems = [
            System(name=name, load=f"{__file__}:{load}", settings=settings)
            for name, load in (("command", "load_command"), ("stages", "load_stages"))
        ]
        bench.columns = lambda machine, rows: usual_columns(memory=False)  # not the programs' own
        bench.measure(systems, Job(name="start"))


def quality(run: str, data: str, windows: int) -> dict[str, object]:
    """Mean KL of next-token distributions and change of perplexity against fp32."""
    import torch
    import torch.nn.functional as F

    from regpt import GPT, get_tokenizer
    from regpt.fast.decoding.decoders import choose_decoder

    model = GPT.from_pretrained(run)
    tokens = get_tokenizer().encode(Path(data).read_text(encoding="utf-8"))
    block = model.config.block_size
    tokens = tokens[-(len(tokens) // 10) :]
    count = min(windows, (len(tokens) - 1) // block)
    sums = {kind: [0.0, 0.0] for kind in KINDS}
    decoders = {kind: choose_decoder(model, engine="fast", dtype=kind)[0] for kind in KINDS}
    for number in range(count):
        part = torch.tensor(tokens[number * block : (number + 1) * block + 1])
        exact = None
        for kind, decoder in decoders.items():
            cache = decoder.new_cache(block)
            with torch.no_grad():
                logprobs = decoder.read_all(part[None, :-1], cache)[0].log_softmax(dim=-1)
            exact = logprobs if exact is None else exact
            sums[kind][0] += F.nll_loss(logprobs, part[1:], reduction="sum").item()
            sums[kind][1] += F.kl_div(logprobs, exact, reduction="sum", log_target=True).item()
    total = count * block
    plain = math.exp(sums["fp32"][0] / total)
    figures = {}
    print(f"{total:,} tokens of the validation text      perplexity    change    mean KL")
    for kind, (nats, divergence) in sums.items():
        perplexity = math.exp(nats / total)
        figures[kind] = {"perplexity": perplexity, "kl": divergence / total}
        print(
            f"{kind:>36}{perplexity:20.4f}{perplexity / plain - 1:+10.3%}{divergence / total:11.2e}"
        )
    return {"benchmark": "quality", "tokens": total, "figures": figures}


def main() -> None:
    """Parse and run."""
    parser = script_options(__doc__, seconds=600.0, rounds=7)
    parser.add_argument("what", choices=("growth", "start", "quality"))
    parser.add_argument("run", nargs="?", help="for quality: a trained model")
    parser.add_argument("--data", help="for quality: a text")
    parser.add_argument("--windows", type=int, default=200)
    given = parser.parse_args()
    if given.what == "quality":
        if given.run is None or given.data is None:
            parser.error("quality needs RUN and --data FILE")
        print(json.dumps(quality(given.run, given.data, given.windows)))
        return
    bench = Benchmark(
        name=f"decoding-{given.what}", seconds=given.seconds, rounds=given.rounds,
        threads=given.threads, out=given.out, json=True,
    )  # fmt: skip
    with bench.running():
        {"growth": growth, "start": start}[given.what](bench)


if __name__ == "__main__":
    run_script(main)
