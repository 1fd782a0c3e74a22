"""Probabilities, ranks and attention as the model really has them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import fails
from test_model import sharpen

from regpt import GPT, GPTConfig, UserError, get_tokenizer
from regpt.cli import main
from regpt.evaluation.explain import attention_maps, explain_text, logit_lens

TEXT = "Hello, <b>I'm</b> a $x$ [bold] \n 日本"


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(7)
    return sharpen(GPT(GPTConfig(block_size=48, n_layer=2, n_head=3, n_embd=24)), 0.2).eval()


def test_probabilities_are_the_softmax(model: GPT) -> None:
    tokenizer = get_tokenizer()
    ids = tokenizer.encode(TEXT)
    places = explain_text(model, ids, top=4)
    with torch.no_grad():
        logits, _ = model(torch.tensor([[tokenizer.eot, *ids]]))
    chances = logits[0].softmax(-1)
    assert [place.token for place in places] == [*ids, None]
    for place, row in zip(places, chances, strict=True):
        ranked = row.argsort(descending=True)[:4].tolist()
        assert [token for token, _ in place.alternatives] == ranked
        assert [c for _, c in place.alternatives] == pytest.approx(row[ranked].tolist(), rel=1e-5)
        if place.token is not None:
            assert place.probability == pytest.approx(row[place.token].item(), rel=1e-5)
            assert place.rank == 1 + int((row > row[place.token]).sum())
    assert places[-1].probability is None


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_the_layer_computes(model: GPT, layer: int) -> None:
    tokenizer = get_tokenizer()
    ids = tokenizer.encode(TEXT)
    maps = attention_maps(model, ids, layer=layer)
    T = len(ids) + 1
    assert maps.shape == (3, T, T)
    assert torch.equal(maps, maps.tril())
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, T))
    seen: list[Any] = []
    attn: Any = model.h[layer].attn  # pyright: ignore
    hooks = [
        attn.c_attn.register_forward_hook(lambda m, a, out: seen.append(out)),
        attn.c_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0])),
    ]
    with torch.no_grad():
        model.hidden(torch.tensor([[tokenizer.eot, *ids]]))
    for hook in hooks:
        hook.remove()
    v = seen[0].chunk(3, dim=-1)[2].view(T, 3, 8).transpose(0, 1)
    torch.testing.assert_close((maps @ v).transpose(0, 1).reshape(T, 24), seen[1][0])
    assert not attn.c_attn._forward_pre_hooks


def test_the_lens_reads_what_each_layer_leaves(model: GPT) -> None:
    tokenizer = get_tokenizer()
    ids = tokenizer.encode(TEXT)
    left: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda m, a, out: left.append(out)) for block in model.h]
    with torch.no_grad():
        model.hidden(torch.tensor([[tokenizer.eot, *ids]]))
        for hook in hooks:
            hook.remove()
        chances = [model.unembed(model.ln_f(x))[0].softmax(-1) for x in left]
    lens = logit_lens(model, ids)
    assert len(lens) == len(model.h) + 1
    for guesses, rows in zip(lens[1:], chances, strict=True):
        for guess, row, token in zip(guesses, rows, [*ids, None], strict=True):
            assert guess.token == int(row.argmax())
            assert guess.probability == pytest.approx(row.max().item(), rel=1e-6)
            expected = None if token is None else pytest.approx(row[token].item(), rel=1e-6)
            assert guess.actual == expected
    likely = [place.alternatives[0][0] for place in explain_text(model, ids)]
    assert [guess.token for guess in lens[-1]] == likely


def test_the_command_writes_a_page_and_a_picture(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    arguments = ["explain", TEXT, "--model", str(tmp_path / "model"), "--device", "cpu"]
    main([*arguments, "--out", str(tmp_path / "out"), "--layer", "1", "--head", "2"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["attention-layer1-head2.png", "explain.html"]
    assert (tmp_path / "out" / names[0]).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert "&lt;" in page
    assert "<b>I" not in page
    assert "data:image/png;base64," in page
    printed = capsys.readouterr().out
    assert printed.count("'Hello'") == 1
    assert "(next)" in printed
    assert "'<97>'" in printed, "a part of a character is shown as its bytes"
    main([*arguments, "--out", str(tmp_path / "all"), "--layer", "0"])
    assert (tmp_path / "all" / "attention-layer0.png").is_file()


def test_bad_input(model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")

    def refused(*arguments: str) -> str:
        return fails(capsys, "explain", *arguments, "--model", tmp_path / "model")

    assert "the text is empty" in refused("")
    assert "the model reads 47 after an end-of-text" in refused("a b " * 40)
    assert "--layer 2: the model has layers 0 to 1" in refused("a", "--layer", "2")
    assert "--head 3: the model has heads 0 to 2" in refused("a", "--head", "3")
    assert "--top must be from 1" in refused("a", "--top", "0")
    for token in (-1, 50257):
        for look in (explain_text, partial(attention_maps, layer=0)):
            with pytest.raises(UserError, match=f"token {token} of the text is outside"):
                look(model, [1, token])
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        explain_text(GPT(GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=8)), [1])
