"""What we hand back to the ecosystem: transformers and CTranslate2 read it and agree with us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from regpt import GPT, GPTConfig, get_tokenizer
from regpt.weights.tokenizer_files import check_tokenizer

TINY = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
"""Tiny, but with GPT-2's whole vocabulary."""


def sharp(config: GPTConfig, *, std: float = 0.5) -> GPT:
    """A model with wide weights: logits of natural scale, no near ties."""
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std)
    return model


def in_transformers(directory: Path, **options: Any) -> Any:
    """The directory in transformers, with nothing missing, unexpected or out of shape."""
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    return model.eval()


def assert_same_bits(one: GPT, other: GPT) -> None:
    theirs = other.state_dict()
    assert list(one.state_dict()) == list(theirs)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), theirs[name].view(torch.int32)), name


@settings(deadline=None, max_examples=12)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_size=st.integers(1, 16),
    vocabulary=st.integers(2, 90),
    positions=st.integers(1, 20),
    epsilon=st.sampled_from([1e-5, 1e-6, 1e-2]),
)
def test_equal_logits_in_transformers_and_the_same_bits_back(
    tmp_path_factory: pytest.TempPathFactory,
    layers: int,
    heads: int,
    head_size: int,
    vocabulary: int,
    positions: int,
    epsilon: float,
) -> None:
    directory = tmp_path_factory.mktemp("export")
    config = GPTConfig(
        block_size=positions,
        vocab_size=vocabulary,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * head_size,
        layer_norm_epsilon=epsilon,
    )
    model = sharp(config)
    model.save_pretrained(directory / "ours")
    reference = in_transformers(directory / "ours")
    idx = torch.randint(0, vocabulary, (2, positions))
    with torch.no_grad():
        logits, _ = model(idx)
        torch.testing.assert_close(logits, reference(idx).logits, rtol=1e-4, atol=1e-4)
    reference.save_pretrained(directory / "theirs")
    back = GPT.from_pretrained(directory / "theirs")
    assert back.config == config
    assert_same_bits(back, model)


def test_shards_of_transformers_come_back_too(tmp_path: Path) -> None:
    model = sharp(TINY)
    model.save_pretrained(tmp_path / "ours")
    in_transformers(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert_same_bits(GPT.from_pretrained(tmp_path / "theirs"), model)


def test_a_pickle_of_transformers_state_dict_comes_back_too(tmp_path: Path) -> None:
    model = sharp(TINY)
    model.save_pretrained(tmp_path)
    torch.save(in_transformers(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same_bits(GPT.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_out_and_in(tmp_path: Path, dtype: torch.dtype) -> None:
    model = sharp(TINY)
    model.to(dtype).save_pretrained(tmp_path)
    reference = in_transformers(tmp_path)
    assert reference.dtype == dtype
    back = GPT.from_pretrained(tmp_path)
    assert back.wte.weight.dtype == torch.float32
    assert torch.equal(back.wte.weight, reference.transformer.wte.weight.float())
    assert_same_bits(back, model.float())


def test_the_exported_tokenizer_belongs_to_the_model(tmp_path: Path) -> None:
    sharp(TINY).save_pretrained(tmp_path)
    check_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Hello, I'm a language model,<|endoftext|> naïve \n\n  한국어"
    ids = get_tokenizer().encode(text, allow_special=True)
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.model_max_length == 32


def test_a_padded_vocabulary_never_shows_outside(tmp_path: Path) -> None:
    model = sharp(TINY)
    idx = torch.randint(0, 50257, (1, 8))
    expected, _ = model(idx)
    rows = torch.full((47, 16), 9.0)
    model.wte.weight = torch.nn.Parameter(torch.cat([model.wte.weight.detach(), rows]))
    model.save_pretrained(tmp_path)
    reference = in_transformers(tmp_path)
    assert reference.transformer.wte.weight.shape == (50257, 16)
    with torch.no_grad():
        torch.testing.assert_close(reference(idx).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_llama_cpps_converter_demands(tmp_path: Path) -> None:
    model = sharp(TINY)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    demanded = ("n_ctx", "n_embd", "n_head", "n_layer", "layer_norm_epsilon", "vocab_size")
    assert [config[name] for name in demanded] == [32, 16, 2, 2, 1e-5, 50257]
    assert config["architectures"] == ["GPT2LMHeadModel"]


PROMPTS = ("Hello, I'm a language model,", "The dog", " 1 + 1 =")


def greedy(model: GPT, prompt: list[int], length: int) -> list[int]:
    """The plainest greedy loop there is."""
    idx = torch.tensor([prompt])
    for _ in range(length):
        logits, _ = model(idx)
        idx = torch.cat([idx, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return idx[0, len(prompt) :].tolist()


def test_ctranslate2_converts_and_runs_it(tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    model = sharp(TINY, std=0.3)
    model.save_pretrained(tmp_path / "ours")
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "ours"))
    converter.convert(str(tmp_path / "theirs"))
    generator = ctranslate2.Generator(str(tmp_path / "theirs"), device="cpu", inter_threads=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    reference = in_transformers(tmp_path / "ours")
    for prompt in PROMPTS:
        ids = get_tokenizer().encode(prompt)
        expected = greedy(model, ids, 20)
        (result,) = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(ids)],
            max_length=20,
            beam_size=1,
            include_prompt_in_result=False,
        )
        assert len(set(expected)) > 5  # not a loop that any bug would repeat
        assert result.sequences_ids[0] == expected
        idx = torch.tensor([ids])
        theirs = reference.generate(
            idx, attention_mask=torch.ones_like(idx), max_new_tokens=20, do_sample=False,
            pad_token_id=50256,
        )  # fmt: skip
        assert theirs[0, len(ids) :].tolist() == expected
