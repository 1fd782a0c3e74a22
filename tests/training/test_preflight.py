"""The examination from end to end, and its arithmetic against what torch really keeps."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, tiny

from regpt import GPT, GPTConfig, UserError
from regpt.cli import main
from regpt.core.loss import next_token_loss
from regpt.core.optimizer import OptimizerConfig
from regpt.fast.training.bf16_weights import keep_bf16_weights
from regpt.fast.training.blocked_attention import attend_in_blocks
from regpt.system.memory import container_memory
from regpt.system.runtime import find_runtime
from regpt.training import memory as arithmetic
from regpt.training.config import RunConfig
from regpt.training.memory import count_memory, gigabytes
from regpt.training.preflight import check_disk, checkpoints_at_once, examine

RUNTIME = find_runtime("cpu", dtype="fp32")
LEARNS = ["--lr", "1e-2", "--optimizer.clip", "None"]


def kept_bytes(shape: GPTConfig, batch_size: int, dtype: torch.dtype) -> int:
    """What autograd really saves of forward and loss, weights and their gradients left out."""
    model = GPT(shape)
    if dtype == torch.bfloat16:  # as a CPU trains then
        attend_in_blocks(model)
        keep_bf16_weights(model)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_weight = tensor.ndim == 2 and tensor.shape[0] != batch_size * shape.block_size
        if storage.data_ptr() not in known and not is_weight:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    idx = torch.zeros(batch_size, shape.block_size, dtype=torch.int64)
    runtime = replace(RUNTIME, dtype=dtype)
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with hooks, runtime.autocast():
        loss = next_token_loss(model, idx, idx)
    assert loss.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activations_are_what_autograd_keeps(dtype: torch.dtype) -> None:
    shape = GPTConfig(block_size=64, vocab_size=64, n_layer=3, n_head=2, n_embd=64)
    config = RunConfig(model=shape, block_size=64)
    runtime = replace(RUNTIME, dtype=dtype)
    memory = count_memory(config, runtime, processes=1, available=1 << 40)
    measured = kept_bytes(shape, 5, dtype)
    assert 5 * memory.activations == pytest.approx(measured, rel=0.1)


def test_the_fixed_part_is_counted() -> None:
    config = RunConfig(optimizer=OptimizerConfig(name="adamw"))
    gpu = replace(RUNTIME, device=torch.device("meta"), dtype=torch.bfloat16)
    memory = count_memory(config, gpu, processes=1, available=0)
    assert memory.parameters == memory.gradients == 4 * 124_439_808
    assert memory.optimizer == 8 * 124_439_808
    assert memory.checkpoint == 12 * 124_439_808
    assert memory.largest_batch == 0
    matrices = 124_318_464  # everything but biases and LayerNorms
    assert memory.copies == 2 * matrices
    muon = replace(config, optimizer=OptimizerConfig(name="muon"))
    hidden = 12 * 12 * 768 * 768
    assert count_memory(muon, gpu, processes=1, available=0).optimizer == (
        8 * (124_439_808 - hidden) + 4 * hidden
    )
    sharded = count_memory(replace(config, shard=True), gpu, processes=8, available=0)
    assert sharded.optimizer == 124_439_808
    thrifty = replace(config, checkpoint_activations=True)
    assert count_memory(thrifty, gpu, processes=1, available=0).activations < memory.activations / 4


def test_the_largest_batch_fills_the_memory() -> None:
    memory = count_memory(RunConfig(model=TINY, block_size=16), RUNTIME, processes=1, available=0)
    roomy = replace(memory, available=10**9)
    largest = roomy.largest_batch
    assert roomy.needed(largest) <= 0.9 * 10**9 < roomy.needed(largest + 1)


def test_a_measured_peak_corrects_the_count_upward() -> None:
    config = RunConfig(batch_size=4)
    memory = count_memory(config, RUNTIME, processes=1, available=10**10)
    steps = memory.needed(4) - memory.checkpoint_copy + arithmetic.LIBRARIES
    assert memory.corrected(steps, 4) == memory
    assert memory.corrected(0, 4) == memory
    more = memory.corrected(steps + 400, 4)
    assert more.activations == memory.activations + 100
    assert more.needed(4) == memory.needed(4) + 400


def test_a_compact_vocabulary_is_counted_by_its_rows() -> None:
    config = RunConfig(compact_vocabulary=True, optimizer=OptimizerConfig(clip=None))
    count = partial(count_memory, config, RUNTIME, processes=1, available=0)
    whole, small = count(), count(rows=10_257)
    assert whole == count(rows=50_257)
    assert whole.parameters - small.parameters == 4 * 40_000 * 768
    assert whole.optimizer - small.optimizer == 8 * 40_000 * 768
    assert small.loss < whole.loss / 4
    assert small.checkpoint == whole.checkpoint == small.checkpoint_copy
    assert small.parameters_whole == whole.parameters_whole


def test_the_count_follows_what_was_measured(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peak far above the arithmetic lowers the largest micro-batch and fails the check."""
    config = tiny(text_file, tmp_path / "run", batch_tokens=8 * 16, batch_size=8)
    peaks = iter([0, 3 * 10**9])
    monkeypatch.setattr("regpt.training.preflight.peak_memory", lambda device: next(peaks))
    monkeypatch.setattr("regpt.training.preflight.available_memory", lambda device: 2 * 10**9)
    report = examine(config)
    assert report.memory.activations > 3 * 10**8
    assert not report.ok
    assert report.checks[0].text.endswith("use --batch-size 5")
    assert [check.name for check in report.checks[:2]] == ["memory", "disk"]


def test_a_container_limits_the_memory(tmp_path: Path) -> None:
    assert container_memory(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert container_memory(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 60\ninactive_file 30\nactive_file 10\n")
    assert container_memory(tmp_path) == 4930, "what files fill is given up"


def test_a_run_that_is_fit(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = examine(tiny(text_file, out, save_every=2, batch_tokens=8 * 16))
    assert report.ok, report.checks
    assert [check.name for check in report.checks] == ["memory", "disk", "one batch"]
    assert report.speed is not None
    assert report.speed.rows == 4
    assert report.speed.step_seconds == 8 * report.speed.row_seconds + report.speed.update_seconds
    assert report.speed.hours == pytest.approx(6 * report.speed.step_seconds / 3600)
    assert not out.exists()
    needed = gigabytes(3 * report.memory.checkpoint + report.memory.parameters)
    assert report.checks[1].text.startswith(f"{needed} for 3 checkpoints at once and the model, ")


def test_more_processes_share_the_work(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", batch_tokens=8 * 16, shard=True)
    report = examine(config, processes=4)
    assert report.speed is not None
    assert report.speed.rows == 2
    assert report.speed.step_seconds == 2 * report.speed.row_seconds + report.speed.update_seconds


def test_what_does_not_fit_is_said(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(text_file, tmp_path / "run", batch_tokens=64 * 16, batch_size=64)
    memory = count_memory(config, RUNTIME, processes=1, available=0)
    room = (memory.needed(5) + memory.activations) / arithmetic.HEADROOM
    monkeypatch.setattr("regpt.training.preflight.available_memory", lambda device: int(room))
    report = examine(config)
    assert not report.ok
    assert report.checks[0].text.endswith("use --batch-size 5")
    assert report.speed is not None
    assert report.speed.rows <= 5
    monkeypatch.setattr("regpt.training.preflight.available_memory", lambda device: memory.fixed)
    report = examine(config)
    assert report.speed is None
    assert "not one sequence fits" in report.checks[0].text


def test_the_disk_is_looked_at_where_the_run_will_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = count_memory(RunConfig(), RUNTIME, processes=1, available=0)
    config = RunConfig(out=str(tmp_path / "a" / "b"), save_every=10, eval_every=10, keep=3)
    assert checkpoints_at_once(config) == 3 + 1 + 1
    assert checkpoints_at_once(RunConfig()) == 1
    roomy = check_disk(config, memory)
    assert roomy.passed
    assert roomy.text.endswith(f"free at {tmp_path}")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=999))
    full = check_disk(config, memory)
    assert not full.passed
    assert "choose another --out, or a smaller --keep" in full.text


SHAPE = [
    "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--device", "cpu",
    "--model.block-size", "16", "--block-size", "16", "--steps", "3", "--batch-size", "2",
]  # fmt: skip


def test_the_command(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["doctor", "quickstart", "--data", str(text_file), *SHAPE, "--price-per-hour", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*flags, *LEARNS])
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed
    assert printed.splitlines()[-1] == "fit to run"
    assert "cost       0.00 at 2 per hour" in printed
    assert "tokens/s" in printed
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--lr", "1e-9", "--optimizer.muon-lr", "1e-9", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1
    assert report["ok"] is False
    faults = [check["name"] for check in report["checks"] if not check["passed"]]
    assert faults == ["one batch"]


def test_doctor_is_one_process(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="processes must be at least 1"):
        examine(tiny(text_file, tmp_path / "run"), processes=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        examine(tiny(text_file, tmp_path / "run"))
