"""Whole runs: killed and resumed, gradients through nccl, `regpt doctor` against the real peak."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resume_kill import losses

from gpu_parts.part import Part
from regpt.core.model import GPTConfig
from regpt.training.config import RunConfig

TOLERANCE = 1e-2
"""Relative, of a loss where a GPU's own runs differ: attention's backward adds in any order."""
GRADIENT_BOUND = 1e-5


def train_run(config: RunConfig, resume: bool) -> None:
    """The process that is killed."""
    from regpt.training.loop import train

    train(config, resume=resume)


def worst(ours: list[tuple[int, float]], whole: list[tuple[int, float]]) -> float:
    """The largest relative difference of the losses."""
    pairs = zip(ours, whole, strict=True)
    return max((abs(a / b - 1) for (_, a), (_, b) in pairs), default=0.0)


def kill_after(process: Any, out: Path, step: int) -> bool:
    """SIGKILL a run once it has done so many steps and saved; whether it was still alive."""
    while process.is_alive():
        saved = any((out / "checkpoints").glob("step-*"))
        if saved and (out / "metrics.jsonl").exists() and len(losses(out)) >= step:
            process.kill()
            break
        time.sleep(0.005)
    process.join()
    return process.exitcode == -9


def resumed(part: Part) -> None:
    """200 steps unbroken, and 200 with a SIGKILL after 120 and a resume: the same losses?"""
    steps, size = (20, 32) if part.small else (200, 384)
    config = RunConfig(
        data=tuple(part.data), device=part.device, steps=steps, save_every=steps // 4,
        batch_size=2 if part.small else 16, block_size=16 if part.small else 1024,
        sample_tokens=10,
        model=GPTConfig(n_layer=1 if part.small else 6, n_head=size // 32, n_embd=size),
    )  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["regpt.training.loop", "torch"])

    def start(out: Path, resume: bool = False) -> Any:
        process = context.Process(target=train_run, args=(replace(config, out=str(out)), resume))
        process.start()
        return process

    whole, broken = Path(part.folder) / "whole", Path(part.folder) / "broken"
    start(whole).join()
    killed = kill_after(start(broken), broken, steps * 3 // 5)
    done = len(losses(broken))
    part.compared(
        "killed while it ran", agrees=killed, measured=f"after {done} steps", required="SIGKILL"
    )
    start(broken, resume=True).join()
    expected, found = losses(whole), losses(broken)
    same_steps = [step for step, _ in found] == [step for step, _ in expected]
    part.compared(
        "steps of the resumed run", agrees=same_steps and len(found) == steps,
        measured=f"{len(found)}", required=f"{steps}, each once",
    )  # fmt: skip
    if not same_steps:
        return
    first = worst(found[: steps // 4], expected[: steps // 4])
    error = worst(found, expected)
    part.compared(
        "losses against the unbroken run", agrees=error <= (0.0 if part.small else TOLERANCE),
        measured="bit-equal" if error == 0 else f"{error:.1e} relative",
        required="bit-equal" if part.small else f"bit-equal, or {TOLERANCE:.0e} relative",
    )  # fmt: skip
    part.row(what="of that before anything was killed", measured=f"{first:.1e} relative")


def nccl(part: Part) -> None:
    """The communication of a run, with one process: nccl on a GPU, gloo on a CPU."""
    import torch
    import torch.distributed as dist

    from regpt.core.model import GPT
    from regpt.system.distributed import World
    from regpt.training.distributed import GradientSum

    device = torch.device(part.device, 0) if part.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    meeting = f"file://{part.folder}/meeting"
    dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
    numbers = torch.arange(1000.0, device=device)
    summed = numbers.clone()
    dist.all_reduce(summed)
    part.compared(
        f"{backend}: a sum over one process", agrees=torch.equal(summed, numbers),
        measured="equal" if torch.equal(summed, numbers) else "not equal", required="equal",
    )  # fmt: skip

    torch.manual_seed(0)
    shape = GPTConfig(n_layer=2, n_head=2, n_embd=64, vocab_size=512) if part.small else GPTConfig()
    model = GPT(shape).to(device)
    idx = torch.randint(0, shape.vocab_size, (4, 65), device=device)

    def gradients(around: Callable[[Callable[[], None]], None]) -> list[torch.Tensor]:
        model.zero_grad()
        _, loss = model(idx[:, :-1], idx[:, 1:])
        assert loss is not None
        around(loss.backward)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients(lambda backward: backward())
    # a size of two is what makes it send; the sum over the one process is the gradient itself
    summing = GradientSum(model, World(rank=0, size=2, device=device))

    def collected(backward: Callable[[], None]) -> None:
        with summing.collecting(last=True):
            backward()

    found = gradients(collected)
    error = max(
        ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
        for a, b in zip(found, expected, strict=True)
    )
    part.compared(
        f"{backend}: gradients through regpt's buckets", agrees=error <= GRADIENT_BOUND,
        measured=f"{error:.1e}", required=f"{GRADIENT_BOUND:.0e} of each norm",
    )  # fmt: skip
    dist.destroy_process_group()


def doctor(part: Part) -> None:
    """`regpt doctor gpt2-124m`: the memory it counted, beside the peak of the steps it timed."""
    from regpt.system.memory import available_memory
    from regpt.system.runtime import find_runtime
    from regpt.training.memory import count_memory
    from regpt.training.preflight import examine
    from regpt.training.presets import gpt2_124m

    config = replace(
        gpt2_124m(), data=tuple(part.data), device=part.device, out=f"{part.folder}/run",
        eval_every=None, validation_tokens=None,
    )  # fmt: skip
    if part.small:
        config = replace(
            config, model=GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=64), block_size=32,
            batch_size=2, batch_tokens=128, dtype="fp32", lr=6e-3,
        )  # fmt: skip
    runtime = find_runtime(config.device, dtype=config.dtype)
    free = available_memory(runtime.device)
    counted = count_memory(config, runtime, processes=1, available=free)
    report = examine(config)
    for check in report.checks:
        verdict = "agrees" if check.passed else "DIFFERS"
        part.row(what=check.name, verdict=verdict, measured=check.text)
    part.row(what="largest micro-batch", measured=f"{report.memory.largest_batch}, by arithmetic")
    speed = report.speed
    if speed is None or speed.peak is None:
        part.note("no step could be timed, or the system does not say what memory it took")
        return
    needed = counted.needed(speed.rows)
    part.row(what="tokens/s", measured=f"{speed.tokens_per_second:,.0f}")
    part.row(
        what=f"memory with {speed.rows} sequences",
        measured=f"peak {speed.peak / 1e9:.2f} GB",
        required=f"counted {needed / 1e9:.2f} GB, {needed / speed.peak - 1:+.0%}",
    )
