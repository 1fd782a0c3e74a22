"""Decoding one row and eight: ours eager and by recorded steps, transformers, a compiled loop."""

from pathlib import Path

from gpu_parts.part import Part
from regpt.bench.generate import PROMPT, SYSTEMS, read_bytes
from regpt.bench.generation_systems import TOP_K
from regpt.bench.hardware_limits import Machine
from regpt.bench.harness import Benchmark, Job
from regpt.bench.worker import Call, System
from regpt.core.model import GPTConfig

ROWS = (1, 8)


def load_transformers(model: str, dtype: str, jobs: list[dict]) -> Call:
    """transformers' generate; its static cache is compiled here, once for each job."""
    from regpt.bench.generation_systems import transformers

    call = transformers(model, dtype)
    for job in jobs:
        call(**job)
    return call


def load_compiled(model: str, dtype: str, device: str, jobs: list[dict]) -> Call:
    """A loop as gpt-fast has it (compiled_loop.py), compiled here, once for each number of rows."""
    import torch

    from gpu_parts.compiled_loop import StaticGPT, compile_step, write
    from regpt.core.model import GPT

    gpt = GPT.from_pretrained(model).to(torch.device(device))
    step = compile_step(device)
    nets: dict[int, StaticGPT] = {}

    def call(prompt: list[int], rows: int, new: int) -> dict[str, object]:
        if rows not in nets:
            length = len(prompt) + new
            nets[rows] = StaticGPT(gpt, rows=rows, length=length, dtype=getattr(torch, dtype))
        tokens = write(nets[rows], step, prompt, new, top_k=TOP_K)
        assert tokens.shape == (rows, new)
        skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        return {"CUDA graphs skipped": skips}

    for job in jobs:
        call(**job)
    return call


def systems(part: Part, model: str, jobs: list[dict]) -> list[System]:
    """Who takes part: ours first."""
    here = "gpu_parts.decoding"
    regpt = [
        System(
            name="regpt", dtype=dtype, engine=engine, load=f"{SYSTEMS}:regpt", ours=True,
            settings={"model": model, "dtype": dtype, "engine": engine},
        )
        for dtype, engine in (("bf16", "fast"), ("bf16", "plain"), ("fp32", "fast"))
        if not (part.small and (dtype, engine) == ("bf16", "fast"))
    ]  # fmt: skip
    known = {"model": model, "dtype": "bfloat16", "jobs": jobs}
    loop = {"load": f"{here}:load_compiled", "settings": {**known, "device": part.device}}
    others = {"load": f"{here}:load_transformers", "settings": known}
    return [
        *regpt,
        System(name="gpt-fast-like", dtype="bf16", **loop),
        System(name="transformers", dtype="bf16", **others),
    ]


def decoding(part: Part) -> None:
    """Tokens per second of each system, and its share of the memory's reading."""
    import torch

    from regpt.core.model import GPT

    shape = GPTConfig(n_layer=2, n_head=2, n_embd=64) if part.small else GPTConfig()
    new = 8 if part.small else 248
    model = str(Path(part.folder) / "random")
    torch.manual_seed(0)
    GPT(shape).save_pretrained(model)
    jobs = [{"prompt": list(PROMPT), "rows": rows, "new": new} for rows in ROWS]
    bench = Benchmark(name="gpu", seconds=60.0, rounds=0 if part.small else 2)
    machine = Machine(**{"device": part.device, **part.machine})
    notes = 0
    for system in systems(part, model, jobs):
        with bench.loaded([system]) as workers:
            for job in jobs:
                name = f"{job['rows']} row{'s' * (job['rows'] > 1)}"
                tokens = job["rows"] * new
                bench.run(workers, Job(name=name, tokens=tokens, arguments=job))
                row = next(
                    (r for r in bench.rows if (r.job, r.title) == (name, system.title)), None
                )
                if row is None or row.tokens_per_second is None:
                    continue
                length = len(PROMPT) + new / 2
                bytes_each = read_bytes(shape, system.dtype, rows=job["rows"], length=length)
                limit, rate = machine.read_bytes_per_second, bytes_each * new / row.seconds
                part.row(
                    job=name, system=system.title, **{"tokens/s": row.tokens_per_second},
                    **{"ms per token": 1e3 * row.seconds / new},
                    **{"of the memory limit": None if limit is None else rate / limit},
                    **dict(row.facts),
                )  # fmt: skip
        for note in bench.notes[notes:]:
            part.note(note)
        notes = len(bench.notes)
