"""Numbers against numbers: tokens, weights, logits, loss, gradients, training steps.

Each check measures one figure on every pair of models and keeps the worst. The references are
transformers' own: its tokenizer, its forward pass, its loss, its autograd; AdamW is torch's on both
sides, fed by each side's gradients.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from regpt.core.model import GPT
from regpt.core.tokenizer import END_OF_TEXT, get_tokenizer
from regpt.parity.model_pair import Pair, Tokenizer, load_theirs, quiet
from regpt.parity.report import Check, judge
from regpt.system.files import writing_to
from regpt.weights.names import is_transposed

TEXTS = (
    "Hello, I'm a language model,",
    "The dog",
    "  two spaces, a\ttab,\r\n\r\n\nthree line ends   and blanks at the end   ",
    "It's we'll they've I'd you're he'S, 3.14159 and 1,000,000 in 2019; naïve café",
    "Ωραία μέρα! Доброе утро. 今日は良い天気です。 오늘은 맑음. सुप्रभात صباح الخير שלום",
    "👩‍👩‍👧‍👦 🇸🇪 \N{COMBINING ACUTE ACCENT}e\u00a0\u200b\u2028 ﬁ",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # $\\alpha$ <tag/>",
    "supercalifragilisticexpialidocious SolidGoldMagikarp aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\x00\x01\x7f",
    "",
)
"""Whatever has tripped a tokenizer: blanks, line ends, contractions, scripts, joined emoji."""

LOGITS_BOUND = {torch.float32: 2e-4, torch.bfloat16: 2e-2}
"""float32: absolute. bfloat16: relative to the norm; one rounding is 4e-3, a forward pass has many
and the two sides round in different places."""
LOSS_BOUND = 1e-5
GRADIENT_BOUND = 1e-4
GRADIENT_FLOOR = 1e-6
TRAINING_BOUND = 1e-4
STEPS = 10
LEARNING_RATE = 3e-4  # the lecture's

Measure = Callable[[Pair], tuple[float, str]]
"""One figure of a pair, and where it was found."""


def windows(pair: Pair, rows: int, *, length: int, seed: int = 0) -> Tensor:
    """Token ids (rows, T) int64 to compare on, T at most `length` and the model's block_size.

    Real text where the tokens have one, cut from the texts above; else random ids.
    """
    T = min(length, pair.ours.config.block_size)
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, T)
    idx = torch.randint(0, pair.ours.config.vocab_size, shape, generator=generator)
    if pair.has_gpt2_vocabulary:
        text = torch.tensor(get_tokenizer().encode(" ".join(TEXTS)))
        idx[0] = text.roll(-T * seed).repeat(T // len(text) + 1)[:T]
    return idx.to(pair.ours.device)


def badness(error: float) -> tuple[bool, float]:
    """What the worst of errors is found by: a NaN is above every bound."""
    return error != error, error


def worst(name: str, pairs: Sequence[Pair], measure: Measure, bound: float, unit: str) -> Check:
    """The check whose figure is the largest of all pairs'."""
    found = [(*measure(pair), pair.name) for pair in pairs]
    figure, where, model = max(found, key=lambda item: badness(item[0]))
    return Check(
        name=name,
        status=judge(figure <= bound),
        figure=f"{figure:.1e}",
        bound=f"{bound:.0e} {unit}",
        detail="; ".join(part for part in (where, f"model: {model}" * (len(pairs) > 1)) if part),
        values={"figure": figure, "bound": bound, "model": model, "where": where},
    )


def check_tokens(tokenizer: Tokenizer) -> Check:
    """Our tokens and text against transformers' tokenizer, over the texts above."""
    ours = get_tokenizer()
    texts = (*TEXTS, "\n".join(TEXTS), f"one{END_OF_TEXT}two")
    total, difference = 0, ""
    for text in texts:
        tokens = ours.encode(text, allow_special=END_OF_TEXT in text)
        with quiet():
            expected = tokenizer.encode(text)
            decoded = tokenizer.decode(expected)
        total += len(tokens)
        if tokens != expected or ours.decode(tokens) != decoded:
            difference = f"first difference in {text!r}: regpt {tokens}, transformers {expected}"
            break
    return Check(
        name="tokens",
        status=judge(not difference),
        figure=f"{total:,} tokens",
        bound="every token",
        detail=difference or f"{len(texts)} texts in many scripts, there and back",
        values={"tokens": total},
    )


def check_weights(pairs: Sequence[Pair]) -> Check:
    """Ours -> transformers -> ours: what transformers writes again, we read as the same bits."""
    changed: list[str] = []
    for pair in pairs:
        with tempfile.TemporaryDirectory() as folder:
            with quiet(), writing_to(Path(folder)):
                pair.theirs.save_pretrained(folder)
            back = GPT.from_pretrained(folder).state_dict()
        changed += [
            f"{name} of model {pair.name}"
            for name, tensor in pair.ours.state_dict().items()
            if not torch.equal(tensor.cpu(), back[name])
        ]
    detail = "regpt's files, through transformers' save_pretrained, bit for bit"
    if changed:
        detail = f"first difference: {changed[0]}"
    total = sum(len(pair.ours.state_dict()) for pair in pairs)
    return Check(
        name="weights there and back",
        status=judge(not changed),
        figure=f"{total - len(changed)} of {total}",
        bound="every tensor",
        detail=detail,
        values={"tensors": total, "changed": len(changed)},
    )


@torch.no_grad()
def check_logits(pairs: Sequence[Pair], dtype: torch.dtype) -> Check:
    """The forward pass in one compute dtype (autocast for bfloat16, on both sides)."""
    is_exact = dtype == torch.float32

    def measure(pair: Pair) -> tuple[float, str]:
        idx = windows(pair, 2, length=64)
        with torch.autocast(idx.device.type, dtype=dtype, enabled=not is_exact):
            ours, theirs = pair.ours(idx)[0].float(), pair.theirs(idx).logits.float()
        absolute = (ours - theirs).abs().max().item()
        relative = ((ours - theirs).norm() / theirs.norm()).item()
        where = (
            f"max absolute {absolute:.1e}, relative {relative:.1e} of the norm; "
            f"standard deviation of logits {theirs.std():.1f}"
        )
        return (absolute if is_exact else relative), where

    name, unit = ("float32", "absolute") if is_exact else ("bfloat16", "of the norm")
    return worst(f"logits, {name}", pairs, measure, LOGITS_BOUND[dtype], unit)


def loss_of(model: torch.nn.Module, idx: Tensor) -> Tensor:
    """Either side's own loss of a batch (B, T); transformers shifts the labels itself."""
    if isinstance(model, GPT):
        return model(idx[:, :-1], idx[:, 1:])[1]
    with quiet():
        return model(idx, labels=idx).loss


@torch.no_grad()
def check_loss(pairs: Sequence[Pair]) -> Check:
    """Mean next-token loss of a batch."""

    def measure(pair: Pair) -> tuple[float, str]:
        idx = windows(pair, 4, length=64)
        loss, expected = (loss_of(model, idx).item() for model in (pair.ours, pair.theirs))
        return abs(loss / expected - 1), f"loss {expected:.4f}"

    return worst("loss", pairs, measure, LOSS_BOUND, "relative")


def gradients(pair: Pair) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every gradient of one batch, ours and theirs, by our names and in our orientation."""
    idx = windows(pair, 2, length=64)
    for model in (pair.ours, pair.theirs):
        loss_of(model, idx).backward()
    ours, theirs = {}, {}
    for name, parameter in pair.ours.named_parameters():
        expected = pair.theirs.get_parameter(f"transformer.{name}").grad
        assert parameter.grad is not None
        assert expected is not None
        ours[name] = parameter.grad
        theirs[name] = expected.t() if is_transposed(name) else expected
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    return ours, theirs


def check_gradients(pairs: Sequence[Pair]) -> Check:
    """Every tensor's gradient, relative to its norm.

    A gradient that is zero in exact arithmetic is rounding noise, and its norm no yardstick. The
    key biases are such (softmax ignores what is added to all scores of a query), but GPT-2 keeps
    them in one tensor with the query and value biases, whose gradients are not zero. For whatever
    else may vanish, the yardstick is at least a millionth of the whole gradient's norm.
    """

    def measure(pair: Pair) -> tuple[float, str]:
        ours, theirs = gradients(pair)
        floor = GRADIENT_FLOOR * torch.stack([g.norm() for g in theirs.values()]).norm()
        errors = {
            name: ((ours[name] - theirs[name]).norm() / torch.maximum(g.norm(), floor)).item()
            for name, g in theirs.items()
        }
        name = max(errors, key=lambda key: badness(errors[key]))
        return errors[name], f"worst of {len(errors)} tensors: {name}"

    return worst("gradients", pairs, measure, GRADIENT_BOUND, "of each norm")


def train(model: torch.nn.Module, idx: Tensor) -> list[float]:
    """Ten AdamW steps, one (B, T) batch of `idx` (10, B, T) each; the loss before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for batch in idx:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_training(pairs: Sequence[Pair]) -> Check:
    """Ten AdamW steps on the same batches, one side after the other, from the weights on disk."""

    def measure(pair: Pair) -> tuple[float, str]:
        idx = torch.stack([windows(pair, 2, length=32, seed=step) for step in range(STEPS)])
        ours = train(GPT.from_pretrained(pair.directory).to(idx.device), idx)
        theirs = train(load_theirs(pair.directory, device=idx.device), idx)
        errors = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        step = max(range(STEPS), key=lambda i: badness(errors[i]))
        return errors[step], f"losses {theirs[0]:.4f} to {theirs[-1]:.4f}, worst in step {step}"

    return worst("ten AdamW steps", pairs, measure, TRAINING_BOUND, "absolute")
