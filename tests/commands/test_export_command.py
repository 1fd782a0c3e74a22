"""`regpt export`: a model on its way out."""

from pathlib import Path

import pytest
import torch
from test_cli import fails
from transformers import AutoModelForCausalLM, AutoTokenizer

from regpt import GPT, GPTConfig
from regpt.cli import main
from regpt.parity.model_pair import draw_peaked

FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    shape = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=16)
    draw_peaked(shape, 0).save_pretrained(directory)
    return directory


def test_what_comes_out_is_a_model_for_transformers_and_for_us(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    main(["export", str(model), str(out)])
    assert {path.name for path in out.iterdir()} == FILES
    printed = capsys.readouterr().out
    assert str(out) in printed
    ours = GPT.from_pretrained(model)
    assert f"{ours.num_parameters():,} parameters" in printed
    idx = torch.tensor([AutoTokenizer.from_pretrained(out).encode("Hello, I'm a language model,")])
    assert idx[0, 0] == 15496
    logits = AutoModelForCausalLM.from_pretrained(out)(idx).logits
    torch.testing.assert_close(logits, ours(idx)[0], atol=2e-4, rtol=1e-5)
    back = GPT.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in ours.state_dict().items())


def test_an_export_can_be_exported_again_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    main(["export", str(model), str(tmp_path / "one")])
    main(["export", str(tmp_path / "one"), str(tmp_path / "two")])
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_place_that_is_taken_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert str(tmp_path) in fails(capsys, "export", model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert "mine.txt" in fails(capsys, "export", model, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_wrong_models_are_one_line_and_write_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "nowhere" in fails(capsys, "export", tmp_path / "nowhere", out)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((model / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:900])
    assert "model.safetensors" in fails(capsys, "export", broken, out)
    assert not out.exists()
    with pytest.raises(SystemExit) as stop:
        main(["export", str(model)])
    assert stop.value.code == 2
