"""Whether weights of 4 bits would pay, before anybody writes a kernel for them.

    python benchmarks/int4.py RUN --data FILE [--windows 200]

A trained model's matrices are rounded as llama.cpp's q4_0 rounds them, 32 weights to a scale, and
computed with in float32. Its own validation text, the last tenth of FILE, says what that costs in
perplexity and divergence, and how often a draft would be right: how often the same random numbers
draw the token that float32 draws. From this, and from the speeds of a 124M model measured here,
follows how much faster exact float32 writing gets with drafts of int8, and with drafts of 4 bits
that are as fast as their bytes allow: read at the speed at which int8 is read, and unpacked for
nothing. Prints a table and, last, one JSON object.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt import GPT, GPTConfig, SamplingParams, get_tokenizer
from regpt.core.sampling import sample
from regpt.fast.decoding.decoders import KernelDecoder
from regpt.fast.decoding.drafters import best_draft_length
from regpt.fast.decoding.kernel_model import KernelModel
from regpt.fast.decoding.speeds import Speed, measure

GROUP = 32
BITS = {"int8": 8 + 32 / 768, "int4": 4 + 16 / GROUP}
"""Of a weight, with its share of a scale."""


def rounded(weight: Tensor) -> Tensor:
    """A matrix as q4_0 keeps it: d q with q in -8 .. 7, d a group's largest weight / -8."""
    groups = weight.detach().reshape(-1, GROUP)
    place = groups.abs().argmax(dim=1, keepdim=True)
    scale = (groups.gather(1, place) / -8).half().float()
    steps = (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7)
    return (steps * scale).view(weight.shape)


def in_four_bits(model: GPT) -> GPT:
    """A copy of the model, its matrices rounded; the tied head is the embedding."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if weight.ndim == 2 and not name.startswith("wpe"):
                weight.copy_(rounded(weight))
    return other


@torch.no_grad()
def compare(model: GPT, tokens: list[int], windows: int) -> dict[str, dict[str, float]]:
    """Perplexity, mean KL from float32, and the share of equal draws with top-k 50."""
    int8 = KernelDecoder(KernelModel(model, "int8"))
    four = in_four_bits(model)
    block = model.config.block_size
    readers = {
        "fp32": lambda idx: model(idx)[0][0],
        "int8": lambda idx: int8.read_all(idx, int8.new_cache(block))[0],
        "int4": lambda idx: four(idx)[0][0],
    }
    sums = {kind: [0.0, 0.0, 0.0] for kind in readers}
    count = min(windows, (len(tokens) - 1) // block)
    params = SamplingParams(top_k=50, rng="portable")
    positions = torch.arange(block)
    for number in range(count):
        part = torch.tensor(tokens[number * block : (number + 1) * block + 1])
        numbers = torch.full((block,), number)
        exact = right = None
        for kind, read in readers.items():
            logits = read(part[None, :-1]).float()
            logprobs = logits.log_softmax(dim=-1)
            drawn = sample(logits, params, numbers=numbers, positions=positions)
            exact, right = (logprobs, drawn) if exact is None or right is None else (exact, right)
            sums[kind][0] += F.nll_loss(logprobs, part[1:], reduction="sum").item()
            sums[kind][1] += F.kl_div(logprobs, exact, reduction="sum", log_target=True).item()
            sums[kind][2] += (drawn == right).sum().item()
    total = count * block
    return {
        kind: {"perplexity": math.exp(nll / total), "kl": kl / total, "equal draws": same / total}
        for kind, (nll, kl, same) in sums.items()
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", help="a trained model")
    parser.add_argument("--data", required=True, help="its text")
    parser.add_argument("--windows", type=int, default=200)
    given = parser.parse_args()
    model = GPT.from_pretrained(given.run).eval()
    tokens = get_tokenizer().encode(Path(given.data).read_text(encoding="utf-8"))
    figures = compare(model, tokens[-(len(tokens) // 10) :], given.windows)
    torch.manual_seed(0)
    large = GPT(GPTConfig()).eval()
    exact, int8 = (measure(KernelModel(large, kind)) for kind in ("fp32", "int8"))
    ratio = BITS["int4"] / BITS["int8"]
    cheap = {"int8": int8, "int4": Speed(tuple(ratio * second for second in int8.seconds))}
    print("      perplexity    mean KL   equal draws   drafts ahead   exact writing, times as fast")
    for kind, found in figures.items():
        line = f"{kind}{found['perplexity']:12.3f}{found['kl']:11.2e}{found['equal draws']:14.1%}"
        if kind in cheap:
            share = min(found["equal draws"], 0.999)
            depth, gain = best_draft_length(share, 1, exact, cheap[kind])
            found |= {"drafts ahead": depth, "times as fast": gain}
            line += f"{depth:15}{gain:32.2f}"
        print(line)
    print(json.dumps({"benchmark": "int4", "cpus": torch.get_num_threads(), "figures": figures}))


if __name__ == "__main__":
    main()
