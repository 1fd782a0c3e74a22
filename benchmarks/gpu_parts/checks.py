"""What is right or wrong: the environment, the tests marked `gpu`, parity, text against the CPU."""

import copy
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_parts.part import REPOSITORY, Part

PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "hypothesis", "safetensors",
            "tiktoken", "tyro")  # fmt: skip
TF32_BOUND = 2.5e-3
"""Of the logits' norm: bfloat16's 2e-2 with three bits more."""
PROMPT = "Hello, I'm a language model,"


def environment(part: Part) -> None:
    """The machine and its limits, and which packages are there."""
    part.row(what="python", found=platform.python_version())
    for package in PACKAGES:
        try:
            part.row(what=package, found=version(package))
        except PackageNotFoundError:
            part.row(what=package, found="not installed")

    import torch

    from regpt.bench import hardware_limits
    from regpt.bench.hardware_limits import Machine, load

    if part.small:
        hardware_limits.SECONDS_EACH, hardware_limits.CPU_MATRIX = 0.01, 64
        hardware_limits.buffer_bytes = lambda device: 1 << 20
    if part.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        part.row(what="gpu", found=properties.name)
        part.row(what="its memory", found=f"{properties.total_memory / 2**30:.1f} GiB")
        part.row(what="its capability", found=f"{properties.major}.{properties.minor}")
        part.row(
            what="CUDA, cuDNN", found=f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
        )
    machine = Machine(**load(part.device)())  # pyright: ignore[reportArgumentType]
    part.found_machine(asdict(machine), f"{machine.describe()}; {machine.describe_limits()}")
    part.row(what="limits", found=machine.describe_limits())


def marked_files() -> list[str]:
    """Test files that hold a test for a GPU: others may want packages that are not there."""
    tests = REPOSITORY / "tests"
    found = [path for path in sorted(tests.rglob("test_*.py")) if path.parent != tests]
    return [str(path) for path in found if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def gpu_tests(part: Part) -> None:
    """`pytest -m gpu`; its last line, and one for each test that did not pass."""
    import hypothesis  # noqa: F401  (tests/conftest.py wants it)
    import pytest  # noqa: F401

    options = ["-m", "gpu", "-rfEs", "-p", "no:cacheprovider", "--no-header"]
    plain = ("-o", "addopts=-q")  # pyproject's ask for pytest-xdist
    command = [sys.executable, "-m", "pytest", *plain, *options, "--continue-on-collection-errors"]
    files = marked_files()[: 1 if part.small else None]
    done = subprocess.run([*command, *files], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    sys.stderr.write(done.stdout)
    lines = done.stdout.strip().splitlines() or [f"pytest ended with code {done.returncode}"]
    for line in lines:
        if line.startswith(("FAILED", "ERROR", "SKIPPED")):
            part.note(line)
    required = "none skipped" if part.device == "cuda" else "skips, on a CPU"
    part.compared(
        "tests marked gpu",
        agrees=done.returncode == 0 and (part.small or "skipped" not in lines[-1]),
        measured=lines[-1].strip("= "),
        required=required,
    )


def parity(part: Part) -> None:
    """`regpt parity`'s checks on the device, and the logits in TF32."""
    import torch
    import transformers

    from regpt.parity import open_pairs, run
    from regpt.parity.model_pair import SMALL_SHAPES, load_tokenizer, random_pair
    from regpt.parity.plan import Comparison
    from regpt.parity.report import Check
    from regpt.system.runtime import find_runtime

    def tell(checks: Iterator[Check]) -> None:
        for check in checks:
            if check.status != "not checked":
                part.compared(
                    check.name, agrees=check.status == "agrees",
                    measured=check.figure, required=check.bound,
                )  # fmt: skip
            if check.status == "differs":
                part.note(f"{check.name}: {check.detail}")

    part.note(f"transformers {transformers.__version__}")
    device = find_runtime(part.device, dtype="fp32").device
    if part.small:
        folder = Path(part.folder) / "pair"
        pairs = [random_pair(SMALL_SHAPES[0], folder, seed=4, device=device)]
        bench = Comparison("random", pairs, load_tokenizer(folder, folder))
        tell(run(bench, seeds=1))
        compare_tf32(part, bench)
        return
    with open_pairs("random", device=device) as bench:
        compare_tf32(part, bench)
        torch.set_float32_matmul_precision("highest")
        tell(run(bench, seeds=1))


def compare_tf32(part: Part, bench: object) -> None:
    """Our logits in TF32 against transformers' in TF32, the worst of all models."""
    import torch

    from regpt.parity.plan import Comparison
    from regpt.parity.tensors import windows

    assert isinstance(bench, Comparison)
    torch.set_float32_matmul_precision("high")
    errors = []
    for pair in bench.pairs:
        idx = windows(pair, 2, length=64)
        with torch.no_grad():
            ours, theirs = pair.ours(idx)[0], pair.theirs(idx).logits
        errors.append(((ours - theirs).norm() / theirs.norm()).item())
    part.compared(
        "logits, tf32" if part.device == "cuda" else "logits, tf32 (a CPU has none: float32)",
        agrees=max(errors) <= TF32_BOUND,
        measured=f"{max(errors):.1e}",
        required=f"{TF32_BOUND:.1e} of the norm",
    )


def text(part: Part) -> None:
    """Greedy and `portable` text on the device, by plain and recorded steps, against the CPU's."""
    import torch

    from regpt import SamplingParams, complete, get_tokenizer
    from regpt.fast.decoding.cuda_graphs import GraphDecoder
    from regpt.parity.model_pair import FULL_SHAPE, SMALL_SHAPES, draw_peaked
    from regpt.system.runtime import find_runtime

    runtime = find_runtime(part.device, dtype="fp32")
    model = draw_peaked(SMALL_SHAPES[0] if part.small else FULL_SHAPE, seed=7)
    on_device = copy.deepcopy(model).to(runtime.device)
    prompt = get_tokenizer().encode(PROMPT)
    length = min(96, model.config.block_size)
    greedy = SamplingParams(temperature=0.0, num_samples=1, max_length=length, stop_at_eot=False)
    sampled = replace(greedy, temperature=1.0, num_samples=5, rng="portable")
    for name, params in (("greedy", greedy), ("sampled, portable", sampled)):
        expected = complete(model, prompt, params)
        for engine in ("plain", "recorded steps"):
            decoder = None
            if engine != "plain":
                decoder = GraphDecoder(on_device, dtype=torch.float32)
            found = complete(on_device, prompt, params, decoder=decoder)
            pairs = [
                pair
                for rows in zip(found, expected, strict=True)
                for pair in zip(*rows, strict=True)
            ]
            equal = sum(ours == theirs for ours, theirs in pairs)
            part.compared(
                f"{name}, fp32, {engine}", agrees=equal == len(pairs),
                measured=f"{equal:,} of {len(pairs):,}", required="every token of the CPU's text",
            )  # fmt: skip
