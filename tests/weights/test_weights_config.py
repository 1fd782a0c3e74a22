"""config.json: what is read, what is refused by name, what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TINY, WIDE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from regpt import GPTConfig, UserError
from regpt.weights import read_config
from regpt.weights.config import (
    DEFAULT_DROPOUT,
    DEFAULT_EPSILON,
    DROPOUTS,
    IMPLEMENTED,
    hugging_face_config,
)

SMALLEST = {
    "model_type": "gpt2",
    "n_positions": 16,
    "vocab_size": 40,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
}
"""What a config.json cannot do without."""


def read(directory: Path, given: Any) -> dict[str, int | float]:
    text = given if isinstance(given, str) else json.dumps(given)
    (directory / "config.json").write_text(text)
    return read_config(directory)


def refusal(directory: Path, given: Any) -> str:
    with pytest.raises(UserError) as raised:
        read(directory, given)
    assert "\n" not in str(raised.value)
    assert "config.json" in str(raised.value)
    return str(raised.value)


def test_the_released_gpt2(tmp_path: Path) -> None:
    released = SMALLEST | {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "output_past": True,  # gpt2-xl's
        "n_special": 0,  # gpt2-medium's, and the next
        "predict_special_tokens": True,
        "_num_labels": 1,  # distilgpt2's, and the next two
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    assert GPTConfig(**read(tmp_path, released)) == GPTConfig(dropout=0.1)  # pyright: ignore


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5000)] * 5),
    dropout=st.floats(0, 0.9),
    epsilon=st.floats(1e-12, 1e-1),
    activation=st.sampled_from(["gelu_new", "gelu_pytorch_tanh"]),
    explicit_inner=st.booleans(),
)
def test_what_transformers_writes_is_what_we_read(
    tmp_path: Path,
    sizes: tuple[int, ...],
    dropout: float,
    epsilon: float,
    activation: str,
    explicit_inner: bool,
) -> None:
    positions, vocabulary, layers, heads, size = sizes
    GPT2Config(
        n_positions=positions,
        vocab_size=vocabulary,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * size,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        layer_norm_epsilon=epsilon,
        activation_function=activation,
        n_inner=4 * heads * size if explicit_inner else None,
        bos_token_id=None,
        eos_token_id=None,
    ).save_pretrained(tmp_path)
    expected = {
        "block_size": positions,
        "vocab_size": vocabulary,
        "n_layer": layers,
        "n_head": heads,
        "n_embd": heads * size,
        "dropout": dropout,
        "layer_norm_epsilon": epsilon,
    }
    assert read_config(tmp_path) == expected


def test_every_setting_transformers_knows_for_gpt2_is_known_to_us(tmp_path: Path) -> None:
    everything = GPT2Config().to_dict() | {"_name_or_path": "gpt2"}
    assert GPTConfig(**read(tmp_path, everything)) == GPTConfig(dropout=0.1)  # pyright: ignore


def test_an_absent_setting_is_what_transformers_takes_for_it(tmp_path: Path) -> None:
    found = read(tmp_path, SMALLEST)
    theirs = GPT2Config()
    assert {getattr(theirs, name) for name in DROPOUTS} == {DEFAULT_DROPOUT}
    assert theirs.layer_norm_epsilon == DEFAULT_EPSILON
    assert (found["dropout"], found["layer_norm_epsilon"]) == (DEFAULT_DROPOUT, DEFAULT_EPSILON)
    for name, values in IMPLEMENTED.items():
        if name in theirs.to_dict():
            assert getattr(theirs, name) == values[0], name


def test_a_setting_that_is_null_is_absent(tmp_path: Path) -> None:
    nothing = dict.fromkeys(["activation_function", "n_inner", "quantization_config", "rope"])
    assert read(tmp_path, SMALLEST | nothing) == read(tmp_path, SMALLEST)
    assert "n_embd" in refusal(tmp_path, SMALLEST | {"n_embd": None})


def test_the_second_names_of_the_sizes(tmp_path: Path) -> None:
    second = {
        "max_position_embeddings": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "vocab_size": 40,
        "model_type": "gpt2",
    }
    assert read(tmp_path, second) == read(tmp_path, SMALLEST)
    assert read(tmp_path, SMALLEST | second) == read(tmp_path, SMALLEST)
    message = refusal(tmp_path, SMALLEST | {"hidden_size": 9})
    assert "n_embd 8 and hidden_size 9 disagree" in message


def test_n_ctx_serves_only_where_n_positions_is_absent(tmp_path: Path) -> None:
    assert read(tmp_path, SMALLEST | {"n_ctx": 15})["block_size"] == 16
    without = {name: value for name, value in SMALLEST.items() if name != "n_positions"}
    assert read(tmp_path, without | {"n_ctx": 15})["block_size"] == 15


@pytest.mark.parametrize("name", SMALLEST)
def test_a_needed_setting_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    rest = {key: value for key, value in SMALLEST.items() if key != name}
    assert f"lacks {name};" in refusal(tmp_path, rest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("n_inner", 31),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("tie_word_embeddings", False),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "modeling.Model"}),
        ("embd_pdrop", 0.2),
        ("attn_pdrop", 0.2),
        ("resid_pdrop", 0.2),
    ],
)
def test_what_we_do_not_implement_is_refused_by_name(
    tmp_path: Path, name: str, value: object
) -> None:
    assert name in refusal(tmp_path, SMALLEST | {name: value})


def test_what_transformers_does_not_read_is_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, SMALLEST | {"rope_theta": 10000.0}) == read(tmp_path, SMALLEST)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, SMALLEST | {"n_inner": 5, "auto_map": {}, "n_head": 0})
    assert all(name in message for name in ("n_inner", "auto_map", "n_head"))


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "openai-gpt", 2])
def test_another_architecture_is_named(tmp_path: Path, kind: object) -> None:
    message = refusal(tmp_path, {"model_type": kind, "hidden_size": 8, "rope_theta": 1.0})
    assert repr(kind) in message
    assert "gpt2" in message


@pytest.mark.parametrize("name", [*SMALLEST, "embd_pdrop", "layer_norm_epsilon"])
@pytest.mark.parametrize("value", ["8", -1, True, [8], float("nan")])
def test_values_that_are_no_numbers(tmp_path: Path, name: str, value: object) -> None:
    changed = SMALLEST | {name: value}
    if name == "embd_pdrop":
        changed |= dict.fromkeys(DROPOUTS, value)
    assert name in refusal(tmp_path, changed)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"gpt2"', "{'a': 1}"])
def test_a_file_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    assert "JSON" in refusal(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(UserError, match="JSON"):
        read_config(tmp_path)


def test_a_directory_without_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("config", [TINY, WIDE, TINY | {"dropout": 0.2, "layer_norm_epsilon": 1}])
def test_what_we_write_we_read(tmp_path: Path, config: dict[str, int | float]) -> None:
    written = hugging_face_config(config, dtype="float32")
    assert read(tmp_path, written) == config
    theirs = GPT2Config.from_pretrained(tmp_path)
    assert theirs.eos_token_id == theirs.bos_token_id
    assert theirs.eos_token_id == (50256 if config["vocab_size"] == 50257 else None)
    assert (theirs.n_ctx, theirs.dtype) == (config["block_size"], torch.float32)


@pytest.mark.parametrize("change", [{"reorder_and_upcast_attn": True}, {"is_decoder": True}])
def test_what_is_passed_over_changes_no_logits(change: dict[str, bool]) -> None:
    logits = []
    for settings_ in ({}, change):
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=30, initializer_range=0.4,
            bos_token_id=None, eos_token_id=None, attn_implementation="eager", **settings_,
        )  # fmt: skip
        logits.append(GPT2LMHeadModel(config).eval()(torch.arange(8)[None]).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
