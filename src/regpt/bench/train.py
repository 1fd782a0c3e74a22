"""`regpt bench train`: one optimisation step, ours and others', in tokens per second.

A job is a step of one model at one batch: `step-124M-B4-T32`. Every system of a job lives in a
process of its own and takes its turns (rounds.py); on a GPU, where memory is short and timings are
steady, one after the other. Work is counted by a formula, the same for all systems:

    FLOP per token = 6 N + 12 L H Q T

N all parameters, L layers, H heads, Q head size, T sequence length (PaLM, appendix B; N with the
position embedding, attention as if nothing were masked). Two shares are made of it: of the matrix
product rate measured on this machine, and MFU, of the chip's published bf16 rate where it is known.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from regpt.bench.hardware_limits import Machine
from regpt.bench.interleaved import Job, Measured, measure
from regpt.bench.rows import Baseline, Column, Finder, Observer, Row, memory_against, speedups
from regpt.bench.workers import System
from regpt.core.model import GPTConfig
from regpt.system.errors import UserError
from regpt.system.memory import available_memory

FORMULA = "FLOP per token = 6 N + 12 L H Q T (N all parameters, attention unmasked)"

SHAPES: dict[str, GPTConfig] = {
    "16M": GPTConfig(n_layer=4, n_head=4, n_embd=256),
    "30M": GPTConfig(n_layer=6, n_head=6, n_embd=384),
    "124M": GPTConfig(),
    "355M": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "774M": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "1558M": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}
CPU_JOBS = ("step-124M-B4-T32", "step-124M-B4-T256", "step-124M-B4-T1024")
CUDA_JOBS = (
    "step-124M-B64-T1024",
    "step-355M-B32-T1024",
    "step-774M-B16-T1024",
    "step-1558M-B8-T1024",
)
PUBLISHED = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 rates of chips, FLOP/s, by a part of their name (data sheets; the SXM modules)."""

LECTURE_FP32 = Baseline(system="lecture", dtype="fp32")
LECTURE_BF16 = Baseline(system="lecture", dtype="bf16")
LECTURE_COMPILED = Baseline(system="lecture-compiled", dtype="bf16")

LIBRARIES = 500_000_000
"""Bytes of a worker that are not the model's: measured 0.4 GB with torch loaded."""

_JOB = re.compile(r"step-(?P<size>\w+)-B(?P<batch>[1-9]\d*)-T(?P<block>[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A job, taken apart."""

    name: str
    shape: GPTConfig
    batch_size: int
    block_size: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch_size * self.block_size


def parse_job(name: str) -> Step:
    """A job from its name.

    Raises:
        UserError: not of the form step-SIZE-Bn-Tn, an unknown size, or too long for the model.
    """
    found = _JOB.fullmatch(name)
    if found is None or found["size"] not in SHAPES:
        raise UserError(
            f"job {name!r} is not step-SIZE-Bn-Tn with SIZE one of {', '.join(SHAPES)}: "
            f"try {CPU_JOBS[0]}"
        )
    shape, block_size = SHAPES[found["size"]], int(found["block"])
    if block_size > shape.block_size:
        raise UserError(f"job {name!r}: the model has {shape.block_size} positions; use T of that")
    return Step(name=name, shape=shape, batch_size=int(found["batch"]), block_size=block_size)


def flops_per_token(shape: GPTConfig, block_size: int) -> int:
    """6 N + 12 L H Q T: forward and backward of one token."""
    return 6 * shape.num_parameters() + 12 * shape.n_layer * shape.n_embd * block_size


def choose_systems(machine: Machine, *, peers: bool, few: bool) -> list[System]:
    """Who takes part, without a job yet; `few`: ours and the fastest plain loop.

    bf16 is left out where the machine has none, as it would be emulated.
    """
    dtypes = ["fp32", "bf16"] if machine.bf16_flops_per_second else ["fp32"]
    room = "regpt.bench.train_systems"
    systems = [System(name="regpt", dtype=dtypes[-1], load=f"{room}:ours", ours=True)]
    if not peers:
        return systems
    if machine.device == "cuda":
        systems.append(
            System(
                name="lecture-compiled",
                dtype=dtypes[-1],
                load=f"{room}:lecture",
                settings={"compiled": True},
            )
        )
    if few:
        dtypes = [] if machine.device == "cuda" else dtypes[-1:]
    names = ("lecture",) if few else ("lecture", "transformers")
    systems += [
        System(name=name, dtype=dtype, load=f"{room}:{name}")
        for name in names
        for dtype in reversed(dtypes)
    ]
    return systems


def memory_of_plain(step: Step) -> tuple[int, int]:
    """Bytes of a plain loop in fp32, by arithmetic: at rest, and at most during a step.

    At rest parameters, gradients and AdamW's averages. In a step four times the logits, and what
    24 C numbers per token and block keep for backward.
    """
    resting = 16 * step.shape.num_parameters()
    shape = step.shape
    logits = 4 * 4 * step.tokens * shape.vocab_size
    return resting, resting + logits + 4 * step.tokens * shape.n_layer * 24 * shape.n_embd


def fit_together(step: Step, systems: int, machine: Machine) -> bool:
    """Whether so many systems may be in memory at once, one of them at work."""
    if machine.device != "cpu" or systems == 1:
        return machine.device == "cpu"
    resting, working = memory_of_plain(step)
    ours = 0.6 * working  # keeps its pages while it rests
    others = (systems - 2) * resting + working + (systems - 1) * LIBRARIES
    return ours + others <= available_memory(torch.device("cpu"))


def run_step(
    step: Step,
    systems: Sequence[System],
    *,
    machine: Machine,
    data: Sequence[str],
    seconds: float,
    rounds: int,
    threads: int | None,
    observe: Observer,
    notes: list[str],
    found: Finder,
    strict: bool,
) -> list[Row]:
    """One job on all systems; what is left out, or odd, is added to `notes`."""
    settings = {
        "shape": asdict(step.shape),
        "batch_size": step.batch_size,
        "block_size": step.block_size,
        "device": machine.device,
        "data": list(data),
    }
    ready = [
        System(
            name=system.name,
            dtype=system.dtype,
            load=system.load,
            settings={**settings, "dtype": system.dtype, **system.settings},
            ours=system.ours,
        )
        for system in systems
    ]
    together = fit_together(step, len(ready), machine)
    if not together and machine.device == "cpu":
        notes.append(f"{step.name}: memory does not hold all systems: one after the other")
    job = Job(name=step.name, tokens=step.tokens)
    measured = measure(
        ready,
        job,
        seconds=seconds,
        rounds=rounds,
        observe=observe,
        faults=notes,
        found=found,
        strict=strict,
        together=together,
        threads=threads,
    )
    compare_losses(step.name, measured, notes)
    return [each.row(job) for each in measured if each.seconds]


def compare_losses(job: str, measured: Sequence[Measured], notes: list[str]) -> None:
    """Note a system whose first loss is not like the first system's: it does something else.

    All start from random weights on the same text: a loss near log(vocabulary), 0.3 apart at most.
    """
    if not measured:
        return
    losses = [float(str(each.facts["first_loss"])) for each in measured]
    for each, loss in zip(measured, losses, strict=True):
        if not abs(loss - losses[0]) < 0.3:
            notes.append(
                f"{job}: first loss of {each.system.title} is {loss:.3f}, of "
                f"{measured[0].system.title} {losses[0]:.3f}: not the same work"
            )


def published_rate(machine: Machine) -> float | None:
    """The chip's bf16 rate by its data sheet, FLOP/s, if it is known."""
    if machine.device != "cuda" or machine.gpu is None:
        return None
    return next((rate for name, rate in PUBLISHED.items() if name in machine.gpu), None)


def share_column(heading: str, limit: float | None) -> Column:
    """A row's rate by the formula as a share of a limit in FLOP/s."""

    def cell(row: Row) -> str:
        step = parse_job(row.job)
        achieved = row.tokens_per_second * flops_per_token(step.shape, step.block_size)
        return "not measured" if limit is None else f"{achieved / limit:.0%}"

    return Column(heading=heading, cell=cell)


def train_columns(machine: Machine, rows: Sequence[Row]) -> list[Column]:
    """Shares of the limits, and the ratios against those baselines that are there."""
    name = "bf16" if machine.bf16_flops_per_second else "fp32"
    limit = machine.bf16_flops_per_second or machine.fp32_flops_per_second
    columns = [share_column(f"of {name} limit", limit)]
    if machine.device == "cuda":
        columns.append(share_column("MFU", published_rate(machine)))
    columns += speedups((LECTURE_FP32, LECTURE_BF16, LECTURE_COMPILED), rows)
    if any(LECTURE_BF16.find(rows, row.job) for row in rows):
        columns.append(memory_against(LECTURE_BF16, rows))
    return columns
