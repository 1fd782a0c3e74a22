"""The lecture, executable: its stages in order, what each finds here and what the lecture says.

    python examples/lecture.py                    # tiny Shakespeare, downloaded once
    python examples/lecture.py path/to/text.txt   # the same on a text of yours
    python examples/lecture.py --small [TEXT]     # a tiny model, seconds instead of minutes

The lecture is Andrej Karpathy's "Let's reproduce GPT-2 (124M)"; docs/lecture.md maps its chapters
to files and functions.
"""

import math
import sys
import time

import torch

from regpt import GPT, GPTConfig, SamplingParams, UserError, complete, find_runtime, get_tokenizer
from regpt.core.data import ArrayDataset, BatchPlan, Loader
from regpt.datasets.corpora import load_corpus

PROMPT = "Hello, I'm a language model,"
SMALL = GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32)


def stage(number: int, title: str) -> None:
    """Print a heading."""
    print(f"\n{number}. {title}")


def found(what: str, here: object, lecture: object = None) -> None:
    """Print what was found and, beside it, what the lecture says."""
    print(f"   {what:<34} {here}" + (f"      (lecture: {lecture})" if lecture is not None else ""))


def fit(model: GPT, batches, steps: int) -> list[float]:
    """The lecture's loop: AdamW at 3e-4, one batch a step; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    runtime = find_runtime()
    losses = []
    started = time.perf_counter()
    for step, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        with runtime.autocast():
            _, loss = model(x.to(model.device), y.to(model.device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            print(f"   step {step:>3}, loss: {losses[-1]:.4f}")
    seconds = time.perf_counter() - started
    found("milliseconds per step", f"{seconds / steps * 1000:.0f} on {runtime.describe()}")
    return losses


def lecture(data: str = "shakespeare", *, small: bool = False) -> dict[str, float]:
    """Walk the stages; returns the figures that the tests look at."""
    config = SMALL if small else GPTConfig()
    steps = 50
    tokenizer = get_tokenizer()
    runtime = find_runtime()
    print(f"the lecture's stages on {runtime.describe()}")

    stage(1, "The prompt's tokens")
    prompt = tokenizer.encode(PROMPT)
    found(repr(PROMPT), prompt, "15496, 11, 314, 1101, 257, 3303, 2746, 11")

    stage(2, "A batch is a view: 24 tokens as 4 x 6, the targets one further")
    corpus = load_corpus([data])
    tokens = corpus.tokens(tokenizer)
    buffer = torch.from_numpy(tokens[:25].astype("int64"))
    print(f"   x = {buffer[:-1].view(4, 6).tolist()}")
    print(f"   y = {buffer[1:].view(4, 6).tolist()}")

    stage(3, "The forward pass")
    torch.manual_seed(1337)
    model = GPT(config).to(runtime.device)
    plan = BatchPlan(num_tokens=len(tokens), block_size=32, sequences=4, order="sequential", seed=0)
    loader = Loader(ArrayDataset(tokens), plan)
    x, y = loader.batch(0)
    with torch.no_grad():
        logits, loss = model(x.to(runtime.device), y.to(runtime.device))
    assert loss is not None
    found("parameters", f"{model.num_parameters():,}", "124M")
    found("logits", tuple(logits.shape), "(4, 32, 50257)")

    stage(4, "The first loss: a uniform guess costs ln(50257)")
    first = loss.item()
    found("ln(50257)", f"{math.log(50257):.2f}", "10.82")
    found("first loss", f"{first:.4f}", "10.9 or so")

    stage(5, f"Overfit one batch, {steps} steps: the loss must go to nothing")
    overfit = fit(model, ((x, y) for _ in range(steps)), steps)[-1]
    found("last loss", f"{overfit:.4f}", "0.0 or so: every token memorised")

    stage(6, "The data loader: walk the tokens by B*T, fetch B*T+1")
    found("tokens", f"{len(tokens):,}", "338025")
    found("batches of 4 x 32", f"{plan.steps_per_epoch:,}", "2640")

    stage(7, f"{steps} real steps: a new batch each")
    torch.manual_seed(1337)
    model = GPT(config).to(runtime.device)
    losses = fit(model, (loader.batch(step) for step in range(steps)), steps)
    last_ten = sum(losses[-10:]) / 10
    found("mean of the last ten", f"{last_ten:.4f}", "6.6 or so")

    stage(8, "Five samples of 30 tokens, top-k 50, seed 42")
    for row in complete(model, prompt, SamplingParams()):
        print(f"   > {tokenizer.decode(row)!r}")
    return {"first": first, "overfit": overfit, "last_ten": last_ten, "tokens": len(tokens)}


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if argument != "--small"]
    try:
        lecture(*names, small="--small" in sys.argv)
    except UserError as error:
        sys.exit(f"lecture: {error}")
