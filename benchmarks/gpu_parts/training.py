"""A training step at T=1024, by `regpt bench train`'s own systems, each grown to its best batch."""

from collections.abc import Sequence
from dataclasses import replace

from gpu_parts.part import Part
from regpt.bench.hardware_limits import Machine
from regpt.bench.harness import Benchmark
from regpt.bench.results import Row
from regpt.bench.train import flops, parse_job, published_rate, run_step
from regpt.bench.worker import System

SYSTEMS = "regpt.bench.train_systems"
OURS = System(name="regpt", dtype="bf16", load=f"{SYSTEMS}:ours", ours=True)
COMPILED = System(
    name="lecture-compiled", dtype="bf16", load=f"{SYSTEMS}:lecture", settings={"compiled": True}
)
GAIN = 1.02
"""What a larger batch must bring for a still larger one to be tried."""


def lecture_in(dtype: str) -> System:
    """The lecture's script before it compiles."""
    return System(name="lecture", dtype=dtype, load=f"{SYSTEMS}:lecture")


def told(part: Part, row: Row, machine: Machine) -> None:
    """A step as a row."""
    step, rate = parse_job(row.job), published_rate(machine)
    part.row(
        system=row.title,
        model=row.job.split("-")[1],
        B=step.batch_size,
        T=step.block_size,
        **{
            "ms per step": 1e3 * row.seconds,
            "tokens/s": row.tokens_per_second,
            "MFU": None if rate is None else flops(row) / rate,
            "peak GB": None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e9,
            "loss": row.facts["loss"],
        },
    )


def grow(part: Part, system: System, size: str, batches: Sequence[int]) -> None:
    """Time a system's step at the batches in turn, until one does not fit or brings nothing."""
    T, best, notes = (32 if part.small else 1024), 0.0, 0
    # no round: the warm-up counts
    bench = Benchmark(name="gpu", seconds=60.0, rounds=0 if part.small else 1)
    bench.machine = Machine(**{"device": part.device, **part.machine})
    for batch in batches:
        step = parse_job(f"step-{size}-B{batch}-T{T}")
        run_step(bench, step, [system], data=part.data)
        for note in bench.notes[notes:]:
            part.note(note)
        notes = len(bench.notes)
        rows = [row for row in bench.rows if row.job == step.name]
        if not rows:
            return
        told(part, rows[0], bench.machine)
        rate = rows[0].tokens_per_second or 0.0
        if rate < GAIN * best:
            return
        best = max(best, rate)


def lecture(part: Part) -> None:
    """The plain script: float32, TF32, bfloat16 autocast; the fastest first."""
    if part.small:  # a CPU has no TF32, which is then a line below the table
        for dtype in ("tf32", "fp32"):
            grow(part, lecture_in(dtype), "16M", (1,))
        return
    for dtype, batches in (("bf16", (32, 64)), ("tf32", (16, 32)), ("fp32", (16,))):
        grow(part, lecture_in(dtype), "124M", batches)


def compiled(part: Part) -> None:
    """The script at its last stage: TF32, torch.compile, fused AdamW, a vocabulary of 50,304."""
    if part.small:
        part.note("compiled by aot_eager: inductor would want a minute of a C++ compiler")
        grow(
            part,
            replace(COMPILED, settings={"compiled": True, "backend": "aot_eager"}),
            "16M",
            (1,),
        )
        return
    grow(part, COMPILED, "124M", (32, 64))


def ours(part: Part) -> None:
    """`regpt train`'s step."""
    grow(part, OURS, *(("16M", (1, 2)) if part.small else ("124M", (64, 128))))


def larger(part: Part) -> None:
    """Ours, the larger models."""
    for size, batch in (("30M", 1),) if part.small else (("355M", 32), ("774M", 16), ("1558M", 8)):
        grow(part, OURS, size, (batch,))
