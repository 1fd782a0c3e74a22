"""The GGUF file, read back by the gguf package: names, orientation, kinds, tokenizer."""

from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from regpt import GPT, GPTConfig, UserError, get_tokenizer
from regpt.cli import main
from regpt.weights.gguf import gguf_name, write_gguf

SHAPE = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(SHAPE)


def read(path: Path) -> tuple[gguf.GGUFReader, dict[str, np.ndarray]]:
    with pytest.MonkeyPatch.context() as patch:  # of a plain array its slices cost a third
        patch.setattr(
            gguf.gguf_reader.np, "memmap", lambda path, mode: np.fromfile(path, dtype=np.uint8)
        )
        reader = gguf.GGUFReader(path)
    return reader, {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(reversed(tensor.shape.tolist()))
        )
        for tensor in reader.tensors
    }


@pytest.mark.parametrize(
    ("kind", "error"), [("f32", 0.0), ("bf16", 2**-8), ("f16", 2**-10), ("q8_0", 2**-6)]
)
def test_every_tensor_is_there_in_its_place(
    model: GPT, tmp_path: Path, kind: str, error: float
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, model.state_dict(), asdict(SHAPE), kind)
    _, found = read(path)
    state = model.state_dict()
    assert set(found) == {gguf_name(name) for name in state}
    for name, tensor in state.items():
        values = torch.from_numpy(np.array(found[gguf_name(name)], dtype=np.float32))
        bound = error if tensor.ndim == 2 and name != "wpe.weight" else 0.0
        torch.testing.assert_close(values, tensor, rtol=0.0, atol=bound * float(tensor.abs().max()))


def test_the_tokenizer_and_the_shape_are_inside(model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, model.state_dict(), asdict(SHAPE), "f32")
    reader, _ = read(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2"
    assert fields["gpt2.block_count"] == 2
    assert fields["gpt2.context_length"] == 16
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 50257
    assert tokens[15496] == "Hello"
    assert tokens[50256] == "<|endoftext|>"
    assert fields["tokenizer.ggml.merges"][0] == "Ġ t"


def test_the_command_and_what_it_refuses(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "m.gguf"), "--gguf", "bf16"])
    assert "m.gguf" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name] == ["m.gguf"]
    narrow = GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=8)
    with pytest.raises(UserError, match="n_embd is 8: choose f32"):
        write_gguf(tmp_path / "n.gguf", GPT(narrow).state_dict(), asdict(narrow), "q8_0")
    assert not (tmp_path / "n.gguf").exists()


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_writes_what_we_write(tmp_path: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is built by hand")
    shape = GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=64)
    torch.manual_seed(2)
    model = GPT(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    path = tmp_path / "model.gguf"
    write_gguf(path, model.state_dict(), asdict(shape), kind)
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    text = "Hello, I'm a language model,  naïve\n\tfür 12345 🤖 don't"
    ids = get_tokenizer().encode(text)
    assert llama.tokenize(text.encode(), add_bos=False) == ids
    llama.eval(ids)
    theirs = torch.from_numpy(llama.scores[: len(ids)].copy())
    ours = model(torch.tensor([ids]))[0][0].detach()
    bound = 1e-2 if kind == "f32" else 5e-2  # its GELU is a table of 16-bit floats
    assert (theirs - ours).norm() <= bound * ours.norm()
    if kind == "f32":
        assert torch.equal(theirs.argmax(dim=-1), ours.argmax(dim=-1))
