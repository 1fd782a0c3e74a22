"""`regpt bench train`: one optimisation step, ours and others', in tokens per second.

A job is a step of one model at one batch: `step-124M-B4-T32`. Every system of a job lives in a
process of its own, in interleaved rounds; on a GPU, where memory is short and timings are steady,
one after the other. Work is counted by a formula, the same for all systems:

    FLOP per token = 6 N + 12 L H Q T

N all parameters, L layers, H heads, Q head size, T sequence length (PaLM, appendix B; N with the
position embedding, attention as if nothing were masked). Two shares are made of it: of the matrix
product rate measured on this machine, and MFU, of the chip's published bf16 rate where it is known.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from regpt.bench.hardware_limits import Machine, share
from regpt.bench.harness import Benchmark, Job
from regpt.bench.results import Column, Row, against, find_row, usual_columns
from regpt.bench.worker import System
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

LIBRARIES = 500_000_000
"""Bytes of a worker that are not the model's: measured 0.4 GB with torch loaded."""

_JOB = re.compile(r"step-(?P<size>\w+)-B(?P<batch>[1-9]\d*)-T(?P<block>[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    shape: GPTConfig
    batch_size: int
    block_size: int

    @property
    def tokens(self) -> int:
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
    dtypes = ["bf16", "fp32"] if machine.bf16_flops_per_second else ["fp32"]

    def system(name: str, dtype: str, loader: str, **settings: object) -> System:
        load = f"regpt.bench.train_systems:{loader}"
        return System(name=name, dtype=dtype, load=load, settings=settings, ours=loader == "ours")

    systems = [system("regpt", dtypes[0], "ours")]
    if peers and machine.device == "cuda":
        systems.append(system("lecture-compiled", dtypes[0], "lecture", compiled=True))
    if peers and not (few and machine.device == "cuda"):
        names, dtypes = (("lecture",), dtypes[:1]) if few else (("lecture", "transformers"), dtypes)
        systems += [system(name, dtype, name) for name in names for dtype in dtypes]
    return systems


def fit_together(step: Step, systems: int, machine: Machine) -> bool:
    """Whether so many systems may be in memory at once, one of them at work.

    By arithmetic for a plain loop in fp32: parameters, gradients and AdamW's averages at rest; in a
    step four times the logits, and what 24 C numbers per token and block keep for backward.
    """
    if machine.device != "cpu" or systems == 1:
        return machine.device == "cpu"
    shape = step.shape
    resting = 16 * shape.num_parameters()
    working = resting + 16 * step.tokens * shape.vocab_size
    working += 4 * step.tokens * shape.n_layer * 24 * shape.n_embd
    ours = 0.6 * working  # keeps its pages while it rests
    others = (systems - 2) * resting + working + (systems - 1) * LIBRARIES
    return ours + others <= available_memory(torch.device("cpu"))


def run_step(
    bench: Benchmark, step: Step, systems: Sequence[System], *, data: Sequence[str]
) -> None:
    """One job on all systems; what is left out becomes a note."""
    settings = {
        "shape": asdict(step.shape),
        "batch_size": step.batch_size,
        "block_size": step.block_size,
        "device": bench.machine.device,
        "data": list(data),
    }
    ready = [
        replace(system, settings={**settings, "dtype": system.dtype, **system.settings})
        for system in systems
    ]
    job = Job(name=step.name, tokens=step.tokens)
    if fit_together(step, len(ready), bench.machine):
        bench.measure(ready, job)
        return
    if bench.machine.device == "cpu":
        bench.note(f"{step.name}: memory does not hold all systems: one after the other")
    for system in ready:
        bench.measure([system], job, seconds=bench.seconds / len(ready))


def published_rate(machine: Machine) -> float | None:
    """The chip's bf16 rate by its data sheet, FLOP/s, if it is known."""
    if machine.device != "cuda" or machine.gpu is None:
        return None
    return next((rate for name, rate in PUBLISHED.items() if name in machine.gpu), None)


def flops(row: Row) -> float:
    """FLOP per second of a row, by the formula."""
    step = parse_job(row.job)
    assert row.tokens_per_second is not None
    return row.tokens_per_second * flops_per_token(step.shape, step.block_size)


def columns(machine: Machine, rows: Sequence[Row]) -> list[Column]:
    name = "bf16" if machine.bf16_flops_per_second else "fp32"
    limit = machine.bf16_flops_per_second or machine.fp32_flops_per_second
    rates = {row.key: flops(row) for row in rows}

    def memory(row: Row) -> str:
        other = find_row(rows, row.job, "lecture", "bf16")
        if other is None or row.peak_memory_bytes is None or other.peak_memory_bytes is None:
            return ""
        return f"{row.peak_memory_bytes / other.peak_memory_bytes:.0%}"

    def of_limit(row: Row) -> str:
        return share(rates[row.key], limit, list(rates.values()))

    def mfu(row: Row) -> str:
        rate = published_rate(machine)
        return "" if rate is None else f"{rates[row.key] / rate:.0%}"

    return [
        *usual_columns(),
        Column(heading=f"of {name} limit", cell=of_limit),
        Column(heading="MFU", cell=mfu),
        against(rows, "lecture", "fp32"),
        against(rows, "lecture", "bf16"),
        against(rows, "lecture-compiled", "bf16"),
        Column(heading="memory of lecture bf16's", cell=memory),
    ]
