"""A step that is not finite: it is not applied, and its evidence is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import losses, tiny

from regpt import UserError
from regpt.core.optimizer import OptimizerConfig
from regpt.core.train import StepResult
from regpt.system.distributed import World
from regpt.system.runtime import find_runtime
from regpt.training.build import build
from regpt.training.loop import train
from regpt.training.nonfinite import KEPT_MODELS, nonfinite_reason, spike_reason
from regpt.training.replay import replay
from regpt.training.state import SPIKE_WINDOW


def test_only_finite_steps_are_applied() -> None:
    def reason(loss: float, grad_norm: float) -> str | None:
        return nonfinite_reason(StepResult(loss=loss, grad_norm=grad_norm))

    assert reason(3.0, 1.0) is None
    assert reason(math.nan, 1.0) == "loss is nan"
    assert reason(3.0, math.inf) == "gradient norm is inf"


def test_a_spike_is_measured_in_standard_deviations(text_file: Path, tmp_path: Path) -> None:
    def reason(losses: list[float], loss: float, score: float | None = 4.0) -> str | None:
        runtime = find_runtime("cpu", dtype="fp32")
        config = tiny(text_file, tmp_path / "run", spike_score=score)
        state = build(config, runtime, World(device=runtime.device))
        state.recent_losses = losses
        return spike_reason(state, StepResult(loss=loss, grad_norm=1.0))

    known = [3.0, 3.2] * (SPIKE_WINDOW // 2)  # mean 3.1, deviation 0.1
    assert reason(known, 3.49) is None
    assert reason(known, 0.1) is None, "better than expected is no fault"
    expected = "loss 3.5200 is 4.2 standard deviations above the mean of the last 128"
    assert reason(known, 3.52) == expected
    assert reason(known[1:], 99.0) is None, "too few losses to judge by"
    assert reason([3.0] * SPIKE_WINDOW, 3.5) is None, "no spread to measure by"
    assert reason(known, 99.0, None) is None, "off by default"


def test_a_skipped_spike_does_not_widen_what_spikes_are_measured_by(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("nonfinite", "loop"):
        monkeypatch.setattr(f"regpt.training.{module}.SPIKE_WINDOW", 3)
    # every step is a spike once three losses are known, so steps 4 to 6 are skipped
    config = tiny(text_file, tmp_path / "run", spike_score=-99.0, skip_bad_steps=3, save_every=5)
    state = train(config)
    assert state.bad_steps == 3
    assert len(state.recent_losses) == 3
    assert state.recent_losses == losses(tmp_path / "run")[:3]
    resumed = train(replace(config, steps=7, skip_bad_steps=4), resume=True)
    assert resumed.bad_steps == 4
    assert resumed.recent_losses == state.recent_losses


def test_the_weights_of_the_newest_bad_steps_only_are_kept(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(
        text_file, out, steps=12, lr=1e20, skip_bad_steps=5, optimizer=OptimizerConfig(clip=None)
    )
    with pytest.raises(UserError, match="was not applied"):
        train(config)
    reports = sorted((out / "incidents").iterdir())
    assert len(reports) == 6
    with_model = [path for path in reports if (path / "model").exists()]
    assert with_model == reports[-KEPT_MODELS:]
    for path in reports:
        assert {"report.json", "batch.txt"} <= {file.name for file in path.iterdir()}
        assert not list(path.glob(".*"))
    weightless = int(reports[0].name[5:])
    again = replay(out, weightless, device=None, note=lambda text: None)
    assert again.source.startswith("the beginning")
    assert not again.is_finite


def test_the_report_says_what_and_when(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, lr=1e20, steps=12, optimizer=OptimizerConfig(clip=1.0))
    with pytest.raises(UserError, match=r"regpt replay .* --step"):
        train(config)
    (evidence,) = (out / "incidents").iterdir()
    report = json.loads((evidence / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["step"] == int(evidence.name[5:])
    assert report["recent_losses"] == losses(out)[-16:]
    number = "loss" if report["loss"] is None else "gradient norm"
    assert report["fault"].startswith(f"{number} is ")


def test_clipping_leaves_the_finite_gradients_of_a_bad_step(
    text_file: Path, tmp_path: Path
) -> None:
    runtime = find_runtime("cpu", dtype="fp32")
    config = tiny(text_file, tmp_path / "run")
    state = build(config, runtime, World(device=runtime.device))
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.model.ln_f.bias.grad[3] = math.nan
    norm = state.optimizer.clip(1.0)
    assert math.isnan(norm.item())
    assert state.model.wte.weight.grad.isfinite().all()
    assert int((~state.model.ln_f.bias.grad.isfinite()).sum()) == 1
