"""What a run says of itself, in lines for people: at its beginning and at its end."""

import shlex
from pathlib import Path

from regpt.training.build import decide_compile
from regpt.training.periodic_evaluation import PeriodicEvaluation
from regpt.training.state import TrainState


def beginning(state: TrainState, directory: Path, evaluation: PeriodicEvaluation) -> str:
    """What is about to be trained, on what, where."""
    config, data, shape = state.config, state.data, state.config.model
    plan, examples = data.loader.plan, len(evaluation.examples)
    held_out = f", {len(data.validation):,} held out" if data.validation else ""
    processes = f", {state.world.size} processes" if state.world.size > 1 else ""
    chosen = f"{examples:,} of {evaluation.num_published:,} examples"
    compiled, reason = decide_compile(config, state.runtime.device)
    return (
        f"regpt train {config.preset}: {', '.join(config.data)} -> {directory}\n"
        f"model      {state.whole_model().num_parameters():,} parameters: {shape.n_layer} layers, "
        f"{shape.n_head} heads, {shape.n_embd} channels, {shape.block_size} positions\n"
        f"data       {plan.num_tokens:,} tokens{held_out}\n"
        f"training   {config.steps:,} steps of {plan.sequences} x {config.block_size} tokens, "
        f"{plan.steps_per_epoch:,} steps per epoch, {config.optimizer.name}\n"
        + (f"hellaswag  {chosen}, the lecture's scoring, fp32\n" if examples else "")
        + f"on         {state.runtime.describe()}{processes}\n"
        f"compiled   {'yes' if compiled else 'no'}: {reason}"
    )


def interruption(state: TrainState, directory: Path) -> str:
    """The run is saved; how it goes on."""
    return (
        f"stopped after step {state.step:,} and saved. Go on with:\n"
        f"  regpt train --resume {shlex.quote(str(directory))}"
    )


def end(state: TrainState, directory: Path, seconds: float) -> str:
    """What lies where, and how to write with it."""
    config, model = state.config, shlex.quote(str(directory))
    lines = [
        f"done in {seconds:.0f} s. In {directory}:",
        "  config.json, model.safetensors, tokenizer files   the model",
        "  metrics.jsonl, loss.png                           its curve",
        "  run.json, samples.txt                             what was run, and texts",
    ]
    if config.tensorboard:
        folder = shlex.quote(str(directory.parent))
        lines += ["Look at it:", f"  tensorboard --logdir {folder}"]
    prompt = shlex.quote(config.prompts[0] if config.prompts else "")
    length = min(config.model.block_size, 100)
    lines += ["Write with it:", f"  regpt sample {prompt} --model {model} --max-length {length}"]
    return "\n".join(lines)
