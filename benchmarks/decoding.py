"""Three more figures of writing: growth with length, the start, and what int8 costs in quality.

    python benchmarks/decoding.py growth                       ms per token against position
    python benchmarks/decoding.py start                        command to first token, and where
    python benchmarks/decoding.py quality RUN --data FILE      bf16 and int8 against fp32

Each prints a table and, last, one JSON object. The 124M model has random weights; quality wants a
trained one, and takes its own validation text: the last tenth of FILE.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from regpt import GPT, GPTConfig, get_tokenizer
from regpt.core.kv_cache import KeyValueCache
from regpt.fast.decoding.decoders import KernelDecoder, choose_decoder
from regpt.fast.decoding.panels import WEIGHT_FORMATS
from regpt.system.malloc import keep_pages

POSITIONS = (10, 100, 250, 500, 1000)


def growth() -> dict[str, object]:
    """ms per step at a position, 1 and 5 rows."""
    torch.manual_seed(0)
    model = GPT(GPTConfig()).eval()
    heads = "".join(f"{position:>8}" for position in POSITIONS)
    print(f"ms a step at position {heads}   1000 : 10")
    figures = {}
    for kind in WEIGHT_FORMATS:
        decoder, note = choose_decoder(model, engine="fast", dtype=kind)
        assert isinstance(decoder, KernelDecoder)
        print(note or "", end="\n" if note else "")
        for rows in (1, 5):
            cache = KeyValueCache(
                model.config, rows=rows, length=1024, dtype=decoder.kernel.cache_dtype
            )
            idx = torch.zeros(rows, 1, dtype=torch.int64)
            seconds: dict[int, list[float]] = {position: [] for position in POSITIONS}
            for _ in range(40):  # alternating, so that a busy moment hits every position
                for position in POSITIONS:
                    cache.lengths = [position] * rows
                    clock = time.perf_counter()
                    decoder.kernel.logits(idx, cache)
                    seconds[position].append(time.perf_counter() - clock)
            middle = [1e3 * statistics.median(seconds[position]) for position in POSITIONS]
            figures[f"{kind} x{rows}"] = middle
            cells = "".join(f"{value:8.2f}" for value in middle)
            print(f"{kind:>5} {rows} row{'s' if rows > 1 else ' '}         {cells}   "
                  f"{middle[-1] / middle[0]:.2f}")  # fmt: skip
    return {"benchmark": "growth", "positions": POSITIONS, "milliseconds": figures}


STAGES = """
import time; begin = time.perf_counter()
import torch; first = time.perf_counter()
from regpt.cli import *; import regpt.commands.sample as s; second = time.perf_counter()
model = s.load(MODEL, seed=42); third = time.perf_counter()
decoder, _ = s.choose_decoder(model, engine="auto", dtype="fp32")
drafter = s.choose_drafter(decoder, "auto", rows=1); fourth = time.perf_counter()
params = s.SamplingParams(max_length=256, num_samples=1)
next(s.generate_steps(model, [s.get_tokenizer().encode("Hello, I'm a language model,")], params,
     decoder=decoder, drafter=drafter)); fifth = time.perf_counter()
print(first - begin, second - first, third - second, fourth - third, fifth - fourth)
"""


def start() -> dict[str, object]:
    """Seconds from the command to the first token, files in the cache; and its parts."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/model"
        torch.manual_seed(0)
        GPT(GPTConfig()).save_pretrained(place)
        command = [sys.executable, "-m", "regpt", "sample", "--stream", "--model", place]
        whole, parts = [], []
        for _ in range(6):
            clock = time.perf_counter()
            with subprocess.Popen(
                [*command, "--max-length", "64"], stdout=subprocess.PIPE
            ) as child:
                assert child.stdout is not None
                prompt = len("Hello, I'm a language model,")
                child.stdout.read(prompt + 1)  # the prompt, and one byte more
                whole.append(time.perf_counter() - clock)
                child.stdout.read()
            code = STAGES.replace("MODEL", repr(place))
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            parts.append([float(part) for part in done.stdout.split()])
    names = ("import torch", "import regpt", "read weights", "pack", "first token")
    middle = [statistics.median(column) for column in zip(*parts[1:], strict=True)]
    print(f"command to first token: {statistics.median(whole[1:]):.2f} s")
    for name, value in zip(names, middle, strict=True):
        print(f"  {name:<14}{value:.2f} s")
    return {"benchmark": "start", "seconds": statistics.median(whole[1:]),
            "parts": dict(zip(names, middle, strict=True))}  # fmt: skip


@torch.no_grad()
def quality(run: str, data: str, windows: int) -> dict[str, object]:
    """Mean KL of next-token distributions and change of perplexity against fp32."""
    model = GPT.from_pretrained(run)
    tokens = get_tokenizer().encode(Path(data).read_text(encoding="utf-8"))
    block = model.config.block_size
    tokens = tokens[-(len(tokens) // 10) :]
    count = min(windows, (len(tokens) - 1) // block)
    sums = {kind: [0.0, 0.0] for kind in WEIGHT_FORMATS}
    decoders = {
        kind: choose_decoder(model, engine="fast", dtype=kind)[0] for kind in WEIGHT_FORMATS
    }
    for number in range(count):
        part = torch.tensor(tokens[number * block : (number + 1) * block + 1])
        exact = None
        for kind, decoder in decoders.items():
            cache = decoder.new_cache()
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
    keep_pages()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("growth")
    commands.add_parser("start")
    judge = commands.add_parser("quality")
    judge.add_argument("run")
    judge.add_argument("--data", required=True)
    judge.add_argument("--windows", type=int, default=200)
    given = parser.parse_args()
    if given.command == "quality":
        results = quality(given.run, given.data, given.windows)
    else:
        results = {"growth": growth, "start": start}[given.command]()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
