"""Does it learn? One batch, learnt by heart, and the usual reasons when it is not.

A sound model, loss, loader and optimizer bring the loss of a single small batch from ln(V) towards
zero in a few dozen steps; whatever is wrong anywhere usually shows there. The reasons people meet
are looked for one by one, and also when the batch *is* learnt, since a model that sees the future
learns it best of all:

- targets: y must be x one token on; compared token by token, and again by what was learnt
- mask: change the tokens after a position, and nothing before it may move; else the first layer
  that moves has the leak
- tie: move a row of wte, and its logit must follow; else the head is another matrix
- learning rate: the same batch at rates 10 and 100 times lower and higher
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.core.data import IGNORE_INDEX, Batch
from regpt.core.model import GPT
from regpt.core.train import StepSettings, compute_gradients
from regpt.fast.training.bf16_weights import gradients_in
from regpt.fast.training.fused_loss import next_token_loss
from regpt.fast.training.optimizer import FastOptimizer
from regpt.system.runtime import Runtime
from regpt.training.activation_stats import recorded_modules
from regpt.training.build import zero_projections
from regpt.training.config import RunConfig

OVERFIT_STEPS = 50
OVERFIT_ROWS, OVERFIT_TOKENS = 4, 32
LEARNT = 0.5
"""The share of its first loss below which a batch counts as learnt."""
SCALES = (0.1, 10.0, 0.01, 100.0)
LEAK = 1e-4
"""Movement, relative to the largest activation, that rounding does not explain."""
INITIAL_TOLERANCE = 0.3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    text: str


def check_first_loss(loss: float, config: RunConfig) -> Check:
    """Before training every token is about equally likely: ln(V), and a little for the spread.

    Logits of a fresh GPT-2 have variance 0.02² C (weights of deviation 0.02 on normalised inputs),
    which raises the expected cross-entropy by half of that.
    """
    uniform = math.log(config.model.vocab_size)
    spread = 0.02**2 * config.model.n_embd / 2
    passed = uniform - INITIAL_TOLERANCE <= loss <= uniform + spread + INITIAL_TOLERANCE
    text = f"{loss:.3f}; ln({config.model.vocab_size}) is {uniform:.3f}"
    if not passed:
        low = loss < uniform
        text += ": " + (
            "the model knows the answers before training: shifted labels, or a leak"
            if low
            else "the initialisation is too wide, or the loss is not a mean of cross-entropies"
        )
    return Check(name="first loss", passed=passed, text=text)


def check_targets(x: Tensor, y: Tensor) -> Check:
    """y[i, j] must be x[i, j + 1]. x, y: (B, T) int64."""
    agreement = {
        offset: share_equal(y, x, offset) for offset in range(min(4, x.shape[1])) if x.numel()
    }
    if agreement.get(1, 1.0) == 1.0:
        return Check(name="targets", passed=True, text="each target is the next token")
    likely = max(agreement, key=lambda offset: agreement[offset])
    if agreement[likely] < 1.0:
        text = f"only {agreement[1]:.0%} of the targets are the next token: the labels are wrong"
    elif likely == 0:
        text = "the targets are the inputs themselves: the labels are not shifted"
    else:
        text = f"the targets are {likely} tokens on, not 1: the labels are shifted"
    return Check(name="targets", passed=False, text=text)


def share_equal(y: Tensor, x: Tensor, offset: int) -> float:
    """The share of targets that are the input `offset` tokens on."""
    targets = y[:, : y.shape[1] - offset]
    real = targets != IGNORE_INDEX
    return ((targets == x[:, offset:]) & real).sum().item() / max(int(real.sum()), 1)


@torch.no_grad()
def check_mask(model: GPT, x: Tensor) -> Check:
    """No output may move when later tokens change. x: (B, T) int64; float32, without dropout."""
    row, length = x[:1], x.shape[1]
    was_training = model.training
    model.eval()
    before = outputs_of(model, row)
    leak = None
    for place in sorted({1, length // 2, length - 1} - {0}):
        changed = row.clone()
        changed[:, place:] = (changed[:, place:] + 1) % model.config.vocab_size
        after = outputs_of(model, changed)
        for name, tensor in before.items():
            moved = (tensor - after[name])[:, :place].abs().max()
            if moved > LEAK * tensor.abs().max():
                leak = leak or (name, place)
    model.train(was_training)
    if leak is None:
        return Check(name="mask", passed=True, text="no position sees a later one")
    name, place = leak
    text = f"{name} sees the future: before position {place} it moves with the tokens from there on"
    return Check(name="mask", passed=False, text=text)


def outputs_of(model: GPT, idx: Tensor) -> dict[str, Tensor]:
    """The outputs (B, T, C) of all layers in float32, in the order of computation."""
    outputs: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: Tensor, *, name: str) -> None:
        outputs[name] = output.float()

    hooks = [
        module.register_forward_hook(partial(keep, name=name))
        for name, module in recorded_modules(model)
        if name != "wpe"  # depends on no token
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            model.hidden(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


@torch.no_grad()
def check_tie(model: GPT) -> Check:
    """A token's logit must follow its row of wte: one matrix is embedding and head."""
    row = model.wte.weight[0].clone()
    hidden = torch.ones(1, 1, len(row), device=row.device)
    logit = model.unembed(hidden)[0, 0, 0].item()
    model.wte.weight[0] += 1.0
    moved = model.unembed(hidden)[0, 0, 0].item() - logit
    model.wte.weight[0] = row
    if abs(moved - len(row)) < 0.01 * len(row):
        return Check(name="tie", passed=True, text="the head is wte")
    text = "the head does not follow wte: the tie is broken, and they are two matrices"
    return Check(name="tie", passed=False, text=text)


def learn_by_heart(
    model: GPT,
    config: RunConfig,
    runtime: Runtime,
    x: Tensor,
    y: Tensor,
    *,
    scale: float = 1.0,
) -> list[float]:
    """The losses of some steps on one batch, from fresh weights, at `scale` times the rates."""
    torch.manual_seed(config.seed)
    model.init_weights()
    if config.zero_projections:
        zero_projections(model)
    settings = replace(config.optimizer, muon_lr=config.optimizer.muon_lr * scale)
    optimizer = FastOptimizer(model, settings, lr=config.lr * scale)
    batch = Batch(0, x, y, int((y != IGNORE_INDEX).sum()))
    step_settings = StepSettings(
        clip=settings.clip, loss_fn=next_token_loss, autocast=runtime.autocast
    )
    losses: list[float] = []
    with torch.compiler.set_stance("force_eager"):
        for step in range(OVERFIT_STEPS):
            optimizer.set_factor(min(1.0, (step + 1) / 5))
            gradients_in(model, bfloat16=True)
            result = compute_gradients(model, optimizer, batch, step_settings)
            losses.append(result.loss)
            if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                break
            optimizer.step()
    return losses


def is_learnt(losses: list[float]) -> bool:
    """Whether the batch is known by heart, or on the way."""
    return math.isfinite(losses[-1]) and losses[-1] < LEARNT * losses[0]


@torch.no_grad()
def what_was_learnt(model: GPT, x: Tensor) -> int:
    """Which token the model predicts best after training: 1 is the next one, as it should be."""
    logits = F.linear(model.hidden(x), model.wte.weight)  # as the loss has it
    losses = {
        offset: F.cross_entropy(
            logits[:, : x.shape[1] - offset].flatten(0, 1).float(), x[:, offset:].flatten()
        ).item()
        for offset in range(min(4, x.shape[1]))
    }
    return min(losses, key=lambda offset: losses[offset])


def check_one_batch(model: GPT, config: RunConfig, runtime: Runtime, x: Tensor, y: Tensor) -> Check:
    """Learn one batch by heart; where that fails, try other learning rates."""
    x, y = x[:OVERFIT_ROWS, :OVERFIT_TOKENS], y[:OVERFIT_ROWS, :OVERFIT_TOKENS]
    learn = partial(learn_by_heart, model, config, runtime, x, y)
    losses = learn()
    path = f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    if is_learnt(losses):
        offset = what_was_learnt(model, x)
        if offset == 1:
            return Check(name="one batch", passed=True, text=f"learnt by heart: loss {path}")
        place = "its own input" if offset == 0 else f"the token {offset} on"
        text = f"loss {path}, but what it learnt is {place}: the labels are shifted"
        return Check(name="one batch", passed=False, text=text)
    for scale in SCALES:
        other = learn(scale=scale)
        if is_learnt(other):
            word = "low" if scale > 1 else "high"
            text = (
                f"not learnt, loss {path}: the learning rate is too {word}; at {scale:g} times "
                f"({config.lr * scale:g}) the loss comes to {other[-1]:.2f}"
            )
            return Check(name="one batch", passed=False, text=text)
    text = f"not learnt, loss {path}, nor at rates 100 times lower or higher: model, loss or data"
    return Check(name="one batch", passed=False, text=text)


def diagnose(model: GPT, config: RunConfig, runtime: Runtime, x: Tensor, y: Tensor) -> list[Check]:
    """All checks of a model on one batch; its weights are not kept."""
    sample = x[:OVERFIT_ROWS, :OVERFIT_TOKENS]
    return [
        check_targets(x, y),
        check_mask(model, sample),
        check_tie(model),
        check_one_batch(model, config, runtime, x, y),
    ]
