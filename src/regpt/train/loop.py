"""The loop, visible: build, then for each step maybe validate, fetch, step, record; then save.

`train(config)` is a library function; the command line only prints what it tells its observer.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from regpt.data.corpora import Corpus, load_corpus
from regpt.data.loader import ArrayDataset, Batch, BatchPlan, Loader
from regpt.errors import UserError
from regpt.evaluate.validation import validate
from regpt.generate import complete
from regpt.model import GPT
from regpt.runtime import Runtime, find_runtime
from regpt.sampling import SamplingParams
from regpt.tokenizer import get_tokenizer
from regpt.train.config import RunConfig
from regpt.train.directory import RunDirectory, free_name
from regpt.train.events import Event, Finished, Observer, Sampled, Started, Stepped, Validated
from regpt.train.optimizer import Optimizer
from regpt.train.picture import draw_loss
from regpt.train.schedule import factor
from regpt.train.step import StepResult, train_step


@dataclass(kw_only=True)
class TrainState:
    """Everything a run is made of, and how far it is."""

    config: RunConfig
    runtime: Runtime
    directory: RunDirectory
    loader: Loader
    validation: ArrayDataset | None
    model: GPT
    optimizer: Optimizer
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens trained on."""


def ignore(event: Event) -> None:
    """The observer that does not look."""


def read_data(config: RunConfig) -> tuple[Corpus, Loader, ArrayDataset | None]:
    """The text, a loader over its training part, and its validation part if there is one."""
    corpus = load_corpus(config.data)
    tokenizer = get_tokenizer()
    held_out = None
    training = corpus
    if config.validation_fraction:
        training, rest = corpus.split(config.validation_fraction)
        held_out = ArrayDataset(rest.tokens(tokenizer))
        if len(held_out) < 2:
            raise UserError(
                f"the validation text, the last {config.validation_fraction:g} of {corpus.name}, "
                f"has {len(held_out)} tokens, but 2 are needed: give more text"
            )
    tokens = ArrayDataset(training.tokens(tokenizer))
    plan = BatchPlan(
        num_tokens=len(tokens),
        block_size=config.block_size,
        sequences=config.sequences(1),
        order=config.order,
        seed=config.seed,
    )
    return corpus, Loader(tokens, plan), held_out


def build(config: RunConfig) -> TrainState:
    """Check everything that can be wrong, then build; the directory is made last."""
    runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
    corpus, loader, held_out = read_data(config)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    path = Path(config.out) if config.out else free_name(config.preset)
    state = TrainState(
        config=config,
        runtime=runtime,
        directory=RunDirectory.create(path),
        loader=loader,
        validation=held_out,
        model=model,
        optimizer=Optimizer(model, config.optimizer, lr=config.lr),
    )
    data = {
        "sources": corpus.name,
        "fingerprint": corpus.fingerprint,
        "train_tokens": len(loader.dataset),
        "validation_tokens": len(held_out) if held_out else 0,
        "tokenizer": get_tokenizer().digest,
    }
    state.directory.write_record(config, data, runtime.describe())
    return state


def train(config: RunConfig, observe: Observer = ignore) -> TrainState:
    """Run a training from beginning to end; returns the finished state."""
    started = time.perf_counter()
    state = build(config)
    observe(describe(state))
    write_samples(state, observe)
    batches = state.loader.batches(0, 1 if config.overfit else config.steps)
    batch = None
    while state.step < config.steps:
        clock = time.perf_counter()
        if batch is None or not config.overfit:
            batch = to_device(next(batches), state.runtime)
        state.optimizer.set_factor(factor(state.step, config.steps, config.schedule))
        result = train_step(
            state.model,
            state.optimizer,
            batch,
            state.runtime,
            micro_batch=config.batch_size,
            clip=config.optimizer.clip,
        )
        record(state, result, batch, clock, observe)
        if is_due(state.step, config.eval_every, config.steps):
            write_validation(state, observe)
    write_samples(state, observe)
    finish(state)
    seconds = time.perf_counter() - started
    observe(Finished(directory=state.directory.path, seconds=seconds))
    return state


def describe(state: TrainState) -> Started:
    """The facts of a run that is about to start."""
    return Started(
        config=state.config,
        directory=state.directory.path,
        place=state.runtime.describe(),
        num_parameters=state.model.num_parameters(),
        train_tokens=len(state.loader.dataset),
        validation_tokens=len(state.validation) if state.validation else 0,
        steps_per_epoch=state.loader.plan.steps_per_epoch,
    )


def to_device(batch: Batch, runtime: Runtime) -> Batch:
    """The batch where the model is."""
    return batch._replace(x=batch.x.to(runtime.device), y=batch.y.to(runtime.device))


def is_due(step: int, every: int | None, steps: int) -> bool:
    """Whether something done every so many steps, and at the end, is due after `step` steps."""
    return step == steps or (every is not None and step % every == 0)


def record(
    state: TrainState, result: StepResult, batch: Batch, clock: float, observe: Observer
) -> None:
    """Count the step and write its line; `clock` is when it began."""
    loss, grad_norm = result.loss.item(), result.grad_norm.item()  # waits for the device
    seconds = time.perf_counter() - clock
    state.step += 1
    state.tokens += batch.num_targets
    event = Stepped(
        step=state.step,
        loss=loss,
        learning_rate=state.optimizer.lr,
        grad_norm=grad_norm,
        tokens=state.tokens,
        tokens_per_second=batch.num_targets / seconds,
    )
    state.directory.append_metrics(asdict(event))
    observe(event)


def write_validation(state: TrainState, observe: Observer) -> None:
    """Score the validation text, if there is one, and write its line."""
    if state.validation is None:
        return
    result = validate(
        state.model, state.validation, state.runtime, block_size=state.config.block_size
    )
    entry = {
        "step": state.step,
        "val_loss": result.loss,
        "val_bits_per_byte": result.bits_per_byte,
        "val_nats_per_character": result.nats_per_character,
        "val_tokens": result.tokens,
    }
    state.directory.append_metrics(entry)
    observe(Validated(step=state.step, result=result))


def write_samples(state: TrainState, observe: Observer) -> None:
    """Let the model continue the prompt; its random stream is its own."""
    tokenizer = get_tokenizer()
    positions = state.config.model.block_size
    prompt = tokenizer.encode(state.config.prompt)[: max(positions // 2, 1)]
    length = min(max(state.config.sample_tokens, len(prompt)), positions)
    params = SamplingParams(max_length=length, num_samples=2)
    with state.runtime.autocast():
        texts = [tokenizer.decode(row) for row in complete(state.model, prompt, params)]
    state.directory.append_samples(f"after {state.step} steps", texts)
    observe(Sampled(step=state.step, texts=texts))


def finish(state: TrainState) -> None:
    """Leave a directory that is a model, with its curve."""
    state.directory.write_model(state.model)
    title = f"{state.config.preset}: {state.model.num_parameters() / 1e6:.1f}M parameters"
    draw_loss(state.directory.read_metrics(), state.directory.picture, title=title)
