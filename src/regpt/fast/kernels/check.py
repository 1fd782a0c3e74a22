"""Whether the compiled kernels compute what torch's operators do: asked once, when they are loaded.

A compiler can be wrong, and so can a library that lies in the cache. Each group of kernels is tried
on a few numbers; a decoding step is tried by `unavailable_format`, the generator's words by
`words.works`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.fast.kernels import adamw, draws, muon, training

ROWS, WIDTH = 3, 48


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """The same each time, and nobody's generator is touched."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor, error: float) -> bool:
    """Within `error` of the norm; never, if one is no number."""
    return bool((found.float() - expected).norm() <= error * expected.norm())


def adamw_is_right() -> bool:
    """One step, and the sum of squares."""
    w, m, v = numbers(3, WIDTH)
    v = v.abs()
    g = numbers(WIDTH, seed=1).bfloat16()
    first, second = m + (g.float() - m) * 0.1, v * 0.95 + g.float() ** 2 * 0.05
    expected = w * 0.99 - first * 0.01 / (second.sqrt() * 2.0 + 1e-8)
    low = torch.empty_like(g)
    rule = adamw.Rule(1.0, 0.99, 0.9, 0.95, 0.01, 2.0, 1e-8)
    adamw.step(w, g, m, v, low, rule)
    squares = torch.tensor([adamw.squares(g)])
    right = near(w, expected, 1e-6) and near(m, first, 1e-6) and near(v, second, 1e-6)
    return right and torch.equal(low, w.bfloat16()) and near(squares, g.float().pow(2).sum(), 1e-5)


def norm_is_right() -> bool:
    """LayerNorm and its gradient."""
    x, weight, bias = numbers(ROWS, WIDTH), numbers(WIDTH, seed=1), numbers(WIDTH, seed=2)
    dy, past = numbers(ROWS, WIDTH, seed=3).bfloat16(), numbers(ROWS, WIDTH, seed=4)
    _, value, stats = training.norm(x, weight, bias, 1e-5)
    expected, mean, inverse = torch.native_layer_norm(x, [WIDTH], weight, bias, 1e-5)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.float(), x, [WIDTH], mean, inverse, weight, bias, [True, True, True]
    )
    into = torch.empty_like(past)
    _, sums = training.norm_backward(dy, x, stats, weight, past, into=into)
    right = near(value, expected, 3e-3) and near(into, dx + past, 1e-5)
    return right and near(sums, torch.stack([dw, db, into.sum(0)]), 1e-5)


def gelu_is_right() -> bool:
    """GELU, its gradient, and sums over rows."""
    x, dy = (numbers(ROWS, WIDTH) * 3).bfloat16(), numbers(ROWS, WIDTH, seed=1).bfloat16()
    slope = torch.ops.aten.gelu_backward(dy.float(), x.float(), approximate="tanh")
    expected = F.gelu(x.float(), approximate="tanh")
    value, sums = training.gelu_backward(x, dy)
    right = near(value, expected, 3e-3) and torch.equal(value, training.gelu(x))
    right = right and near(dy, slope, 3e-3) and near(sums, slope.sum(0), 1e-5)
    return right and near(training.row_sum(value), value.float().sum(0), 1e-5)


def loss_is_right() -> bool:
    """Nats, and their gradient."""
    logits, targets = numbers(ROWS, WIDTH).bfloat16(), torch.tensor([0, 40, 7])
    p = logits[:, :41].float().softmax(1)
    expected = -p.gather(1, targets[:, None]).log().squeeze(1)
    nats = training.loss(logits, targets, 41, ignored=-100, more=0.0, gradient=True)
    gradient = p - F.one_hot(targets, 41)
    return near(nats, expected, 1e-5) and near(logits[:, :41], gradient, 3e-3)


def draw_is_right() -> bool:
    """The most likely token, whatever the words."""
    logits, words = numbers(ROWS, 5000), torch.arange(ROWS * 5000).view(ROWS, 5000)
    tokens, undecided = draws.draw(logits, list(words), top_k=1, temperature=1.0, close=1e-5)
    return torch.equal(tokens, logits.argmax(1)) and not undecided.any()


def muon_is_right() -> bool:
    """One iteration, of a wide matrix."""
    w, g = torch.zeros(32, 64), numbers(32, 64, seed=1)
    average, x = torch.zeros_like(g), g / g.norm()
    square = x @ x.T
    expected = -0.1 * (3.0 * x - 2.0 * square @ x + 0.5 * square @ square @ x)
    muon.step(
        [muon.Step(weight=w, gradient=g, average=average)],
        [(3.0, -2.0, 0.5)],
        scale=1.0,
        momentum=0.0,
        nesterov=False,
        rate=0.1,
        weight_decay=0.0,
        epsilon=1e-7,
    )
    return near(average, g, 1e-6) and near(w, expected, 2e-2)


GROUPS: dict[str, Callable[[], bool]] = {
    "AdamW": adamw_is_right,
    "LayerNorm": norm_is_right,
    "GELU": gelu_is_right,
    "loss": loss_is_right,
    "draw": draw_is_right,
    "Muon": muon_is_right,
}


@torch.no_grad()
def wrong() -> str | None:
    """What the kernels loaded compute wrongly, in one line; None if nothing."""
    with torch.autocast("cpu", enabled=False):
        names = [name for name, is_right in GROUPS.items() if not is_right()]
    return f"the compiled kernels' numbers are wrong: {', '.join(names)}" if names else None
