"""`regpt bench generate`: writing, ours and others', on one export and the same jobs."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from regpt.bench.hardware_limits import Machine
from regpt.bench.interleaved import Job, alternate
from regpt.bench.rows import Baseline, Column, Finder, Observer, Row, speedups
from regpt.bench.workers import PATIENCE_SECONDS, System, Worker, WorkerFault, loaded
from regpt.core.model import GPTConfig

PROMPT = (15496, 11, 314, 1101, 257, 3303, 2746, 11)
"""Hello, I'm a language model,"""
SHAPES = {"lecture-5x30": (5, 22), "stream-248": (1, 248), "batch-5x248": (5, 248)}
"""Rows, and new tokens of each, after the prompt's 8."""
JOBS = tuple(SHAPES)
SLOW = {"lecture-loop": ("lecture-5x30",), "llama.cpp": ("lecture-5x30", "stream-248")}
"""Systems that take part in these jobs only: without a cache a long text takes minutes, and the
binding writes one row at a time."""

BASELINES = tuple(Baseline(system=name, dtype="fp32") for name in ("lecture-loop", "ctranslate2"))
BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "q8_0": 34 / 32}


def job(name: str) -> Job:
    """A job by its name."""
    rows, new = SHAPES[name]
    arguments = {"prompt": list(PROMPT), "rows": rows, "new": new}
    return Job(name=name, tokens=rows * new, arguments=arguments)


def our_systems(model: str) -> list[System]:
    """Every dtype of ours; `auto` first, which is what `regpt sample` does unasked.

    That is float32 with a draft where one pays; `fast` is every token by itself.
    """
    return [
        System(
            name="regpt",
            dtype=dtype,
            engine=engine,
            load="regpt.bench.generation_systems:regpt",
            settings={"model": model, "dtype": dtype, "engine": engine},
            ours=True,
        )
        for dtype, engine in (
            ("fp32", "auto"),
            ("fp32", "fast"),
            ("bf16", "fast"),
            ("int8", "fast"),
        )
    ]


def peer_systems(model: str, files: Path) -> list[System]:
    """The others, in the dtypes each is good at."""
    places = "regpt.bench.generation_systems:"
    peers = [
        System(
            name=name,
            dtype=dtype,
            load=places + name.replace("-", "_"),
            settings={"model": model, "dtype": dtype},
        )
        for name, dtype in (
            ("lecture-loop", "fp32"),
            ("transformers", "fp32"),
            ("transformers", "bf16"),
        )
    ]
    for dtype, compute_type in (("fp32", "float32"), ("int8", "int8")):
        settings = {"model": str(files / "ctranslate2"), "compute_type": compute_type}
        peers.append(
            System(
                name="ctranslate2",
                dtype=dtype,
                load=places + "ctranslate2",
                settings=settings,
            )
        )
    for dtype, kind in (("fp32", "f32"), ("bf16", "bf16"), ("q8_0", "q8_0")):
        settings = {"model": str(files / f"{kind}.gguf")}
        peers.append(
            System(name="llama.cpp", dtype=dtype, load=places + "llama_cpp", settings=settings)
        )
    return peers


def convert(model: str, out: Path, kind: str, deadline: float | None = None) -> None:
    """Convert in a process of its own, by the deadline if there is one; raises WorkerFault."""
    settings = {"model": model, "out": str(out), "kind": kind}
    system = System(
        name=kind, dtype="", load="regpt.bench.generation_systems:convert", settings=settings
    )
    worker = Worker(system)

    def patience() -> float:
        left = PATIENCE_SECONDS if deadline is None else deadline - time.monotonic()
        return max(left, 0.0)

    try:
        worker.load(patience=patience())
        worker.call({}, patience=patience())
    finally:
        worker.close()


@contextmanager
def prepared(
    model: str,
    *,
    peers: bool,
    observe: Observer,
    faults: list[str],
    deadline: float | None = None,
) -> Iterator[list[System]]:
    """The systems, with an export and its conversions in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        if model == "random":
            observe("drawing a 124M model")
            model = str(files / "export")
            convert(model, files / "export", "random")
        systems = our_systems(model)
        if peers:
            for kind, name, package in (
                ("ctranslate2", "ctranslate2", "ctranslate2"),
                ("f32", "f32.gguf", "llama_cpp"),
                ("bf16", "bf16.gguf", "llama_cpp"),
                ("q8_0", "q8_0.gguf", "llama_cpp"),
            ):
                if find_spec(package) is None:  # loading will say so
                    continue
                observe(f"converting for {kind}")
                try:
                    convert(model, files / name, kind, deadline)
                except WorkerFault as fault:
                    faults.append(f"no {kind} conversion: {fault}")
            systems += peer_systems(model, files)
        yield systems


def run(
    systems: Sequence[System],
    jobs: Sequence[str],
    *,
    seconds: float,
    rounds: int,
    observe: Observer,
    faults: list[str],
    found: Finder,
    strict: bool,
    threads: int | None,
    deadline: float | None = None,
) -> list[Row]:
    """All jobs, in alternating rounds over the systems that take part in them."""
    rows: list[Row] = []
    with loaded(
        systems, observe=observe, faults=faults, threads=threads, deadline=deadline
    ) as workers:
        for name in jobs:
            due = [worker for worker in workers if name in SLOW.get(worker.system.name, JOBS)]
            measured = alternate(
                due,
                job(name),
                seconds=seconds,
                rounds=rounds,
                observe=observe,
                faults=faults,
                found=found,
                strict=strict,
            )
            rows += [each.row(job(name)) for each in measured if each.seconds]
    return rows


def read_bytes(config: GPTConfig, dtype: str, *, rows: int, length: float) -> float:
    """Bytes that one step reads at least: every matrix once, and the keys and values so far."""
    C = config.n_embd
    matrices = config.n_layer * 12 * C * C + config.vocab_size * C
    cache = rows * length * 2 * config.n_layer * C * 4
    return matrices * BYTES_PER_WEIGHT[dtype] + cache


def bandwidth_share(config: GPTConfig, read_bytes_per_second: float | None) -> Column:
    """The share of the machine's read bandwidth that a system's steps come to."""

    def cell(row: Row) -> str:
        rows, new = SHAPES[row.job]
        if read_bytes_per_second is None or row.system == "lecture-loop":
            return ""
        if row.system == "llama.cpp":  # one row at a time: every row reads the matrices again
            rows, new = 1, rows * new
        step = row.seconds / new
        length = len(PROMPT) + SHAPES[row.job][1] / 2
        needed = read_bytes(config, row.dtype, rows=rows, length=length)
        return f"{needed / step / read_bytes_per_second:.0%}"

    return Column(heading="of read bandwidth", cell=cell)


def generate_columns(config: GPTConfig, machine: Machine, rows: Sequence[Row]) -> list[Column]:
    """The ratios against those baselines that are there, and the share of the bandwidth."""
    return [*speedups(BASELINES, rows), bandwidth_share(config, machine.read_bytes_per_second)]
