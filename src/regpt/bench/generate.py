"""`regpt bench generate`: writing, ours and others', on one export and the same jobs."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from regpt.bench.hardware_limits import Machine, share
from regpt.bench.harness import Benchmark, Job
from regpt.bench.results import Column, Row, against, usual_columns
from regpt.bench.worker import PATIENCE_SECONDS, System, WorkerFault, started
from regpt.core.model import GPTConfig

PROMPT = (15496, 11, 314, 1101, 257, 3303, 2746, 11)
"""Hello, I'm a language model,"""
SHAPES = {"lecture-5x30": (5, 22), "stream-248": (1, 248), "batch-5x248": (5, 248)}
"""Rows, and new tokens of each, after the prompt's 8."""
JOBS = tuple(SHAPES)
SLOW = {"lecture-loop": ("lecture-5x30",), "llama.cpp": ("lecture-5x30", "stream-248")}
"""Systems that take part in these jobs only: without a cache a long text takes minutes, and the
binding writes one row at a time."""
FORMATS = {"ctranslate2": "ctranslate2", "f32.gguf": "llama_cpp", "bf16.gguf": "llama_cpp",
           "q8_0.gguf": "llama_cpp"}  # fmt: skip
"""What the export is converted to, and the package that reads it."""
BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "q8_0": 34 / 32}
SYSTEMS = "regpt.bench.generation_systems"


def job(name: str) -> Job:
    rows, new = SHAPES[name]
    arguments = {"prompt": list(PROMPT), "rows": rows, "new": new}
    return Job(name=name, tokens=rows * new, arguments=arguments)


def our_systems(model: str) -> list[System]:
    """Every dtype of ours; `auto` first, which is what `regpt sample` does unasked.

    That is float32 with a draft where one pays; `fast` is every token by itself.
    """
    kinds = (("fp32", "auto"), ("fp32", "fast"), ("bf16", "fast"), ("int8", "fast"))
    return [
        System(name="regpt", dtype=dtype, engine=engine, load=f"{SYSTEMS}:regpt", ours=True,
               settings={"model": model, "dtype": dtype, "engine": engine})
        for dtype, engine in kinds
    ]  # fmt: skip


def peer_systems(model: str, files: Path) -> list[System]:
    """The others, in the dtypes each is good at, on the export or a conversion in `files`."""

    def peer(name: str, shown: str, /, **settings: str) -> System:
        load = f"{SYSTEMS}:{name.replace('-', '_').replace('.', '_')}"
        return System(name=name, dtype=shown, load=load, settings=settings)

    converted = str(files / "ctranslate2")
    return [
        peer("lecture-loop", "fp32", model=model),
        peer("transformers", "fp32", model=model, dtype="float32"),
        peer("transformers", "bf16", model=model, dtype="bfloat16"),
        peer("ctranslate2", "fp32", model=converted, compute_type="float32"),
        peer("ctranslate2", "int8", model=converted, compute_type="int8"),
        peer("llama.cpp", "fp32", model=str(files / "f32.gguf")),
        peer("llama.cpp", "bf16", model=str(files / "bf16.gguf")),
        peer("llama.cpp", "q8_0", model=str(files / "q8_0.gguf")),
    ]


def convert(model: str, out: Path, *, deadline: float) -> None:
    """Convert in a process of its own, by the deadline; raises WorkerFault."""
    settings = {"model": model, "out": str(out)}
    system = System(name=out.name, load=f"{SYSTEMS}:convert", settings=settings)
    with started(system) as worker:
        worker.load(patience=max(deadline - time.monotonic(), 0.0))
        worker.call({}, patience=max(deadline - time.monotonic(), 0.0))


@contextmanager
def prepared(
    bench: Benchmark, model: str, *, peers: bool, deadline: float
) -> Iterator[list[System]]:
    """The systems, with an export and its conversions in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        if model == "random":
            bench.tell("drawing a 124M model")
            model = str(files / "random")
            convert(model, files / "random", deadline=time.monotonic() + PATIENCE_SECONDS)
        systems = our_systems(model)
        if peers:
            for name, package in FORMATS.items():
                if find_spec(package) is None:  # loading will say so
                    continue
                bench.tell(f"converting to {name}")
                try:
                    convert(model, files / name, deadline=deadline)
                except WorkerFault as fault:
                    bench.note(f"no conversion to {name}: {fault}")
            systems += peer_systems(model, files)
        yield systems


def run(bench: Benchmark, model: str, jobs: Sequence[str], *, peers: bool) -> None:
    """All jobs, in interleaved rounds over the systems that take part in them.

    The peers may take as long for converting and loading as all jobs for their calls.
    """
    deadline = time.monotonic() + bench.seconds * len(jobs)
    with (
        prepared(bench, model, peers=peers, deadline=deadline) as systems,
        bench.loaded(systems, deadline=deadline) as workers,
    ):
        for name in jobs:
            due = [worker for worker in workers if name in SLOW.get(worker.system.name, JOBS)]
            bench.run(due, job(name))


def read_bytes(config: GPTConfig, dtype: str, *, rows: int, length: float) -> float:
    """Bytes that one step reads at least: every matrix once, and the keys and values so far."""
    C = config.n_embd
    matrices = config.n_layer * 12 * C * C + config.vocab_size * C
    cached = rows * length * 2 * config.n_layer * C
    return matrices * BYTES_PER_WEIGHT[dtype] + cached * (4 if dtype == "fp32" else 2)


def read_rate(config: GPTConfig, row: Row) -> float | None:
    """Bytes per second that a system's steps read at least; None where a step is not one token."""
    if row.system == "lecture-loop" or row.engine == "auto":
        return None
    rows, new = SHAPES[row.job]
    length = len(PROMPT) + new / 2
    if row.system == "llama.cpp":  # one row at a time: every row reads the matrices again
        rows, new = 1, rows * new
    return read_bytes(config, row.dtype, rows=rows, length=length) * new / row.seconds


def columns(config: GPTConfig, machine: Machine, rows: Sequence[Row]) -> list[Column]:
    rates = {row.key: read_rate(config, row) for row in rows}
    known = [found for found in rates.values() if found]

    def of_bandwidth(row: Row) -> str:
        found = rates[row.key]
        return "" if found is None else share(found, machine.read_bytes_per_second, known)

    return [
        *usual_columns(),
        against(rows, "lecture-loop", "fp32"),
        against(rows, "ctranslate2", "fp32"),
        Column(heading="of read bandwidth", cell=of_bandwidth),
    ]
