"""Everything that wants a GPU, measured in one command of under nine minutes.

    python benchmarks/gpu.py --out DIR            on a machine with an H100 or H200
    python benchmarks/gpu.py --small --out DIR    every part on a CPU, tiny: figures mean nothing

In this order, each part in a process of its own with its own time: the environment; the tests
marked `gpu`; parity with transformers; text against the CPU's; a training step, grown to its best
batch, beside the lecture's script; the larger models; decoding; a run killed and resumed; nccl with
one process; `regpt doctor` against the measured peak. Results are written as they come, gpu.md and
gpu.json in DIR, and what libraries said in gpu.log. A part that fails, wants a package that is not
there, or has no time left is a line there, and the next one begins. Needs this repository and what
it depends on, but no installation and no network. Exit code 1: a part failed, ran over its limit,
or something differs.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from gpu_parts.results import SMALL, write  # noqa: E402
from gpu_parts.runner import Found, Plan, allowance, run_part  # noqa: E402

from regpt.bench.results import command_line, find_commit  # noqa: E402

TOTAL_SECONDS = 525.0
SMALL_PATIENCE = 10
"""Times the limits: with --small they only end what hangs."""
PLANS = [
    Plan(name=name, place=f"gpu_parts.{place}", limit=limit, least=least)
    for name, place, limit, least in (
        ("environment", "checks:environment", 40, 10),
        ("pytest -m gpu", "checks:gpu_tests", 75, 15),
        ("parity with transformers", "checks:parity", 70, 15),
        ("text against the CPU", "checks:text", 45, 10),
        ("training step: the lecture's script", "training:lecture", 70, 20),
        ("training step: compiled", "training:compiled", 90, 35),
        ("training step: ours", "training:ours", 80, 35),
        ("larger models", "training:larger", 100, 25),
        ("decoding", "decoding:decoding", 100, 25),
        ("killed and resumed", "runs:resumed", 50, 20),
        ("nccl with one process", "runs:nccl", 30, 10),
        ("doctor", "runs:doctor", 60, 20),
    )
]


def tell(text: str) -> None:
    """A line for whoever watches."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def environment(*, small: bool) -> dict[str, str]:
    """The parts' environment: this repository's code first, no network, no GPU if small."""
    places = [str(REPOSITORY / "src"), str(REPOSITORY / "benchmarks"), os.environ.get("PYTHONPATH")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)),
             "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    return found | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if small else found


def stop(number: int, frame: object) -> None:
    """SIGTERM ends it as Ctrl-C does, with the part under way."""
    raise KeyboardInterrupt


def write_with(out: Path, head: dict, done: list[Found], found: Found) -> None:
    """The results so far, with those of the part under way."""
    write(out, head | found.head, [*done, found])


def run(plans: list[Plan], *, small: bool, out: Path) -> list[Found]:
    """All parts, one after the other, and the results of each as they come."""
    total = TOTAL_SECONDS
    if small:
        total *= SMALL_PATIENCE
        plans = [replace(plan, limit=plan.limit * SMALL_PATIENCE) for plan in plans]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu.log"
    log.write_text("", encoding="utf-8")
    head = {"small": small, "date": date.today().isoformat(), "commit": find_commit(),
            "command": command_line(), "describe": "", "machine": {}}  # fmt: skip
    done: list[Found] = []
    begun = time.monotonic()
    folder = tempfile.mkdtemp(prefix="regpt-gpu-")
    try:
        for index, plan in enumerate(plans):
            seconds = allowance(plans, index, total - (time.monotonic() - begun))
            tell(f"{plan.name}: at most {max(seconds, 0):.0f} s")
            if seconds < plan.least:
                status = f"not begun: {max(seconds, 0):.0f} s left, it wants {plan.least:.0f} s"
                done.append(Found(name=plan.name, status=status))
                write(out, head, done)
                tell(f"  {status}")
                continue
            settings = {"small": small, "folder": folder, "machine": head["machine"]}
            found = run_part(
                plan, settings, seconds=seconds, environment=environment(small=small), log=log,
                heard=partial(write_with, out, head, done),
            )  # fmt: skip
            done.append(found)
            head |= found.head
            tell(f"  {found.status}, {len(found.rows)} rows, {found.seconds:.0f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def main() -> None:
    """Parse, run, say where the results are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help=SMALL)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="default gpu-results")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        help="the parts whose names hold a WORD; shares and MFU want environment too",
    )
    given = parser.parse_args()
    plans = [p for p in PLANS if not given.only or any(word in p.name for word in given.only)]
    if not plans:
        parser.error(
            f"no part's name holds {', '.join(given.only)}: {', '.join(p.name for p in PLANS)}"
        )
    signal.signal(signal.SIGTERM, stop)
    if given.small:
        tell(SMALL)
    else:
        try:
            import torch
        except ModuleNotFoundError:
            parser.error("torch is not installed, and everything here wants it")
        if not torch.cuda.is_available():
            parser.error("this machine has no CUDA device: use --small, where no figure counts")
    try:
        done = run(plans, small=given.small, out=given.out)
    except KeyboardInterrupt:
        tell(f"interrupted: what was measured until then is in {given.out}")
        raise SystemExit(130) from None
    tell(f"results: {given.out / 'gpu.md'}, {given.out / 'gpu.json'}, log {given.out / 'gpu.log'}")
    raise SystemExit(any(found.faulty for found in done))


if __name__ == "__main__":
    main()
