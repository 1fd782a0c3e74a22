"""The rule that stops a step, and what is kept of it."""

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
from regpt.training.nonfinite import KEPT_MODELS, what_is_wrong
from regpt.training.replay import replay
from regpt.training.state import SPIKE_WINDOW, TrainState


def state_of(text_file: Path, tmp_path: Path, **changes: object) -> TrainState:
    runtime = find_runtime("cpu", dtype="fp32")
    config = tiny(text_file, tmp_path / "run", **changes)
    return build(config, runtime, World(device=runtime.device))


def result(loss: float, grad_norm: float = 1.0) -> StepResult:
    return StepResult(loss=loss, grad_norm=grad_norm)


def test_only_finite_steps_are_applied(text_file: Path, tmp_path: Path) -> None:
    state = state_of(text_file, tmp_path)
    assert what_is_wrong(state, result(3.0)) is None
    assert what_is_wrong(state, result(math.nan)) == "loss is nan"
    assert what_is_wrong(state, result(3.0, math.inf)) == "gradient norm is inf"


def test_a_spike_is_measured_in_standard_deviations(text_file: Path, tmp_path: Path) -> None:
    state = state_of(text_file, tmp_path, spike_score=4.0)
    state.recent_losses = [3.0, 3.2] * (SPIKE_WINDOW // 2)  # mean 3.1, deviation 0.1
    assert what_is_wrong(state, result(3.49)) is None
    assert what_is_wrong(state, result(0.1)) is None, "better than expected is no fault"
    fault = what_is_wrong(state, result(3.52))
    assert fault == f"loss 3.5200 is 4.2 standard deviations above the mean of the last {128}"
    state.recent_losses.pop()
    assert what_is_wrong(state, result(99.0)) is None, "too few losses to judge by"
    state.recent_losses = [3.0] * SPIKE_WINDOW
    assert what_is_wrong(state, result(3.5)) is None, "no spread to measure by"
    state = state_of(text_file, tmp_path)
    state.recent_losses = [3.0, 3.2] * (SPIKE_WINDOW // 2)
    assert what_is_wrong(state, result(99.0)) is None, "off by default"


def test_a_skipped_spike_does_not_widen_what_spikes_are_measured_by(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("nonfinite", "state"):
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
    incidents = sorted((out / "incidents").iterdir())
    assert len(incidents) == 6
    with_model = [path for path in incidents if (path / "model").exists()]
    assert with_model == incidents[-KEPT_MODELS:]
    for path in incidents:
        assert {"report.json", "batch.txt"} <= {file.name for file in path.iterdir()}
        assert not list(path.glob(".*"))
    weightless = int(incidents[0].name[5:])
    again = replay(out, weightless, device=None, note=lambda text: None)
    assert again.source.startswith("the beginning")
    assert not again.is_finite


def test_the_report_says_where(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, lr=1e20, steps=12, optimizer=OptimizerConfig(clip=1.0))
    with pytest.raises(UserError, match=r"regpt replay .* --step"):
        train(config)
    (incident,) = (out / "incidents").iterdir()
    report = json.loads((incident / "report.json").read_text(), parse_constant=pytest.fail)
    names = [line["name"] for line in report["layers"]]
    assert names[0] == "wte"
    assert names[-1] == "logits"
    assert report["first_layer_not_finite"] in names
    assert all(line["output"].keys() == {"rms", "max", "not_finite"} for line in report["layers"])


def test_clipping_leaves_the_finite_gradients_of_a_bad_step(
    text_file: Path, tmp_path: Path
) -> None:
    state = state_of(text_file, tmp_path)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.model.ln_f.bias.grad[3] = math.nan
    norm = state.optimizer.clip(1.0)
    assert math.isnan(norm.item())
    assert state.model.wte.weight.grad.isfinite().all()
    assert int((~state.model.ln_f.bias.grad.isfinite()).sum()) == 1
