"""A step computed again is the step; a broken one is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TINY, losses, tiny

from regpt import GPT, UserError
from regpt.cli import main
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.training.activation_stats import (
    first_gradient_not_finite,
    first_not_finite,
    record_activations,
)
from regpt.training.loop import train
from regpt.training.replay import replay


def ignore(text: str) -> None:
    """Notes nobody reads."""


@pytest.mark.parametrize(("step", "source"), [(1, "beginning"), (5, "step-00000004"), (6, "1 st")])
def test_every_step_comes_out_as_recorded(
    text_file: Path, tmp_path: Path, step: int, source: str
) -> None:
    out = tmp_path / "run"
    schedule = ScheduleConfig(name="cosine", warmup_steps=2)
    config = tiny(
        text_file,
        out,
        save_every=4,
        model=replace(TINY, dropout=0.1),
        schedule=schedule,
        pad_vocabulary=True,
    )
    train(config)
    (out / "checkpoints" / "step-00000006").rename(tmp_path / "aside")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = replay(out, step, device=None, note=ignore)
    assert again.loss == pytest.approx(losses(out)[step - 1], rel=1e-6)
    assert again.recorded is not None
    assert again.grad_norm == pytest.approx(again.recorded["grad_norm"], rel=1e-5)
    assert source in again.source
    assert again.fault is None
    assert first_not_finite(again.layers) is first_gradient_not_finite(again.layers) is None
    assert list(again.layers) == [
        "wte", "wpe", "h.0.ln_1", "h.0.attn", "h.0.ln_2", "h.0.mlp", "h.0", "ln_f", "logits"
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def broken_run(text: Path, out: Path) -> None:
    """A run that stops at a step that is not finite."""
    config = tiny(text, out, lr=1e20, steps=12, optimizer=OptimizerConfig(clip=None))
    with pytest.raises(UserError, match="was not applied"):
        train(config)


def test_a_nonfinite_step_is_replayed_from_its_own_weights(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    broken_run(text_file, out)
    (evidence,) = (out / "incidents").iterdir()
    step = str(int(evidence.name[5:]))
    main(["replay", str(out), "--step", step, "--json"])
    found = json.loads(capsys.readouterr().out)
    report = json.loads((evidence / "report.json").read_text())
    assert found["source"] == str(evidence / "model")
    assert found["fault"] == report["fault"]
    broken = {line["name"] for line in found["layers"] if line["output"]["not_finite"]}
    assert broken, "the weights are beyond float32, and so must some layer be"
    main(["replay", str(out), "--step", step])
    printed = capsys.readouterr().out
    assert f"not finite from {found['first_layer_not_finite']} on" in printed
    assert "it stopped or skipped there: " in printed


def test_what_is_no_step_is_refused(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out))
    with pytest.raises(UserError, match="step 7 is not one of the run's 1 to 6"):
        replay(out, 7, device=None, note=ignore)
    with pytest.raises(UserError, match="holds no run"):
        replay(tmp_path / "nowhere", 1, device=None, note=ignore)
    text_file.write_text(text_file.read_text().replace("cat", "cow", 1))
    with pytest.raises(UserError, match="the data has changed"):
        replay(out, 2, device=None, note=ignore)


@pytest.mark.parametrize("place", ["h.1.mlp", "h.0.attn", "ln_f"])
def test_the_first_layer_that_breaks_is_named(place: str) -> None:
    model = GPT(replace(TINY, n_layer=2))
    with torch.no_grad():
        layer = model.get_submodule(place)
        next(layer.parameters())[0] = float("nan")
    idx = torch.arange(16).view(1, 16)
    with record_activations(model) as layers:
        model(idx)
    assert first_not_finite(layers) == place
    assert layers["wte"].output.rms == pytest.approx(model.wte(idx).square().mean().sqrt().item())
    assert layers["logits"].output.numbers == 16 * 50257
    assert not model.ln_f._forward_hooks


def test_a_gradient_that_breaks_is_named() -> None:
    model = GPT(replace(TINY, n_layer=2))
    idx = torch.arange(16).view(1, 16)

    def spoil(module: object, inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * float("inf"))

    with record_activations(model) as layers:
        hook = model.h[1].attn.register_forward_hook(spoil)
        model(idx, idx)[1].backward()
        hook.remove()
    assert first_not_finite(layers) is None
    found = first_gradient_not_finite(layers)
    assert found in ("h.1.ln_1", "h.1.attn")
    assert layers["h.1.mlp"].gradient.not_finite == 0
    assert layers["h.0"].gradient.not_finite > 0
