"""Random calls of every C kernel; run under the sanitizers by test_sanitized_kernels.py.

python sanitized.py FOLDER SEED       compiles into FOLDER; prints how many calls were made
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from regpt import GPT, GPTConfig, SamplingParams
from regpt.core.kv_cache import KeyValueCache
from regpt.fast.decoding.kernel_model import KernelModel, Panels
from regpt.fast.decoding.panels import WEIGHT_FORMATS
from regpt.fast.decoding.topk_sampling import draw_in_c, race_in_c
from regpt.fast.kernels import build, training
from regpt.fast.training import adamw, muon

SANITIZERS = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-omit-frame-pointer", "-g1"),
)
IGNORED = -100


def use_sanitizers(folder: Path) -> None:
    """Let the kernels be compiled with them, elsewhere."""
    build.FLAGS = tuple("-O1" if flag == "-O3" else flag for flag in build.FLAGS) + SANITIZERS
    build.cache_folder = lambda: folder
    build.PATIENCE_SECONDS = 500.0  # some 10 s where nobody else computes
    build.load_library()


def low(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def width() -> int:
    return 16 * random.randint(1, 9)


def decode() -> int:
    """A model of some shape, and a text of some rows read and written in pieces."""
    kind = random.choice(WEIGHT_FORMATS)
    size, heads = random.choice([16, 32, 48, 64, 80, 128]), random.randint(1, 3)
    shape = GPTConfig(
        block_size=random.randint(4, 40),
        vocab_size=random.randint(2, 700),
        n_layer=random.randint(1, 2),
        n_head=heads,
        n_embd=size * heads,
    )
    native = KernelModel(GPT(shape), kind, untested=True)
    rows, calls = random.randint(1, 9), 0
    length = random.randint(2, shape.block_size)
    cache = KeyValueCache(shape, rows=rows, length=length, dtype=native.cache_dtype, clean=False)
    left = length
    while left:
        count = min(random.choice([1, 1, 1, 2, 5, 17]), left)
        idx = torch.randint(0, shape.vocab_size, (rows, count))
        top_k = random.choice([None, 1, min(7, shape.vocab_size), min(512, shape.vocab_size)])
        if random.random() < 0.2:
            native.run(idx, cache, wanted=())
        else:
            read = random.choice([native.logits, native.all_logits])
            assert not read(idx, cache, top_k=top_k).isnan().any()
        left -= count
        calls += 1
    return calls


def pack() -> int:
    """int8 panels of a matrix of some shape."""
    Panels(torch.randn(random.randint(1, 200), width()), None, "int8")
    return 1


def draw() -> int:
    """Tokens of rows with ties, infinities and numbers that are none."""
    rows, columns = random.randint(1, 9), random.randint(1, 5000)
    logits = torch.randn(rows, columns + random.randint(0, 3))[:, :columns]
    if random.random() < 0.3:
        logits = logits.round()
    if random.random() < 0.2:
        logits[0, 0] = random.choice([torch.nan, torch.inf, -torch.inf])
    top_k = random.randint(1, min(512, columns))
    noise = draw_in_c(rows, columns, torch.Generator().manual_seed(random.getrandbits(30)))
    params = SamplingParams(top_k=top_k, temperature=random.uniform(0.1, 2.0))
    tokens, undecided = race_in_c(logits, params, noise)
    assert bool(((tokens >= 0) & (tokens < columns))[~undecided].all())
    return 2


def step() -> int:
    """AdamW, and the squares of its gradient."""
    n = 16 * random.choice([1, 2, 3, 255, 256, 257, 700])
    weight, average, square = torch.randn(3, n).unbind()
    gradient, copy = low(n), low(n)
    rule = adamw.Rule(1.0, 0.99, 0.9, 0.95, 1e-3, 1.0, 1e-8)
    adamw.step(weight.clone(), gradient, average.clone(), square.abs(), copy, rule)
    adamw.squares(gradient)
    return 2


def orthogonal() -> int:
    """Muon's step of a few matrices."""
    matrices = []
    for _ in range(random.randint(1, 4)):
        shape = (32 * random.randint(1, 4), 32 * random.randint(1, 4))
        gradient = low(*shape) if random.random() < 0.5 else torch.randn(shape)
        matrices.append(
            muon.Step(
                weight=torch.randn(shape),
                gradient=gradient,
                average=torch.randn(shape),
                copy=low(*shape) if random.random() < 0.5 else None,
            )
        )
    group = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": random.randint(1, 3)}
    group |= {"momentum": 0.95, "nesterov": random.random() < 0.5}
    muon.step(matrices, group | {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-7}, scale=0.5)
    return 1


def between() -> int:
    """What stands between the products of a training step."""
    rows, n = random.randint(1, 70), width()
    x, dy, delta = torch.randn(rows, n), low(rows, n), low(rows, n)
    weight, bias = torch.randn(2, n).unbind()
    weight, bias = weight.clone(), bias.clone()
    total, _, stats = training.norm(
        x, weight, bias, 1e-5, delta=delta if random.random() < 0.5 else None
    )
    training.norm_again(total, stats, weight, bias)
    past = torch.randn(rows, n)
    into = past if random.random() < 0.5 else torch.empty(rows, n)
    training.norm_backward(dy, total, stats, weight, past, into=into)
    training.add(x, delta)
    training.gelu(delta)
    training.gelu_backward(delta, dy)
    training.rounded_and_summed(x)
    training.row_sum(delta)
    queries, start = random.randint(1, 40), random.randint(0, 40)
    scores = torch.randn(3, queries, start + queries).bfloat16()
    weights = training.causal_softmax(scores.clone(), start)
    training.causal_softmax_backward(weights, scores, start)
    return 10


def cross_entropy() -> int:
    """Nats of some targets, some of them ignored, of a vocabulary with or without padding."""
    rows, vocab_size = random.randint(1, 40), random.randint(1, 600)
    logits = low(rows, vocab_size + random.randint(0, 64))
    targets = torch.randint(0, vocab_size, (rows,))
    targets[torch.rand(rows) < 0.2] = IGNORED
    more, gradient = random.choice([0.0, 2.0]), random.random() < 0.7
    training.loss(logits, targets, vocab_size, ignored=IGNORED, more=more, gradient=gradient)
    return 1


KERNELS: dict[Callable[[], int], int] = {
    decode: 90,
    pack: 60,
    draw: 150,
    step: 120,
    orthogonal: 40,
    between: 130,
    cross_entropy: 260,
}
"""Times each is called, or so; each call is of one or several kernels."""


@torch.no_grad()
def main(folder: Path, seed: int) -> None:
    use_sanitizers(folder)
    random.seed(seed)
    torch.manual_seed(seed)
    calls = 0
    for kernel, times in KERNELS.items():
        for index in range(times):
            torch.set_num_threads(1 + index % 2)
            calls += kernel()
    print(calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
