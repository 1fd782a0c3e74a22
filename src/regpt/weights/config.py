"""config.json, both ways: Hugging Face's settings of a GPT-2 and the fields of our GPTConfig.

The sizes are needed, and a setting that changes the mathematics of transformers' GPT-2 must have a
value that we implement (the two tables below). Any other setting is passed over, as transformers
does. A setting that is null is not set.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regpt.core.tokenizer import END_OF_TEXT_ID, VOCAB_SIZE
from regpt.system.errors import UserError
from regpt.system.json_text import read_json

FILE_NAME = "config.json"

SIZES = {
    "block_size": ("n_positions", "max_position_embeddings"),
    "vocab_size": ("vocab_size",),
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_embd": ("n_embd", "hidden_size"),
}
"""Our field and its names in the file; transformers accepts the second as well as the first."""

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
DEFAULT_DROPOUT = 0.1
DEFAULT_EPSILON = 1e-5
"""What transformers takes for a setting that is absent."""

IMPLEMENTED: dict[str, tuple[object, ...]] = {
    # two names for one function, GELU in its tanh form
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "tie_word_embeddings": (True,),
    "pruned_heads": ({},),
    # weights in a form of their own; another model under GPT-2's name
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Settings that change the mathematics, with the values that mean GPT-2."""


def read_config(directory: Path) -> dict[str, int | float]:
    """The keyword arguments of GPTConfig that a directory's config.json asks for.

    Raises `UserError` in one line for a file that is missing or damaged, for another architecture,
    for sizes that are missing, and for every value we do not implement, each by name.
    """
    path = directory / FILE_NAME
    settings = _read_json(path)
    kind = settings.get("model_type")
    if kind not in (None, "gpt2"):
        raise UserError(f"{path}: model_type is {kind!r}; regpt reads 'gpt2' models only")
    missing = [names[0] for names in SIZES.values() if not settings.keys() & set(names)]
    if "n_positions" in missing and "n_ctx" in settings:
        missing.remove("n_positions")
        settings["n_positions"] = settings["n_ctx"]
    if kind is None:
        missing.insert(0, "model_type")
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; every GPT-2's config.json has them")
    if problems := "; ".join(_problems(settings)):
        raise UserError(f"{path}: {problems}")
    sizes = {
        field: next(settings[name] for name in names if name in settings)
        for field, names in SIZES.items()
    }
    dropout = settings.get(DROPOUTS[0], DEFAULT_DROPOUT)
    epsilon = settings.get("layer_norm_epsilon", DEFAULT_EPSILON)
    return sizes | {"dropout": dropout, "layer_norm_epsilon": epsilon}


def _read_json(path: Path) -> dict[str, Any]:
    """The settings that are set."""
    try:
        settings = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent}: no {path.name} in it, so this is not a model directory; give one that "
            "holds config.json and model.safetensors"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a JSON object of settings; fetch it again")
    return {name: value for name, value in settings.items() if value is not None}


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of one size that disagree, settings that ask for what regpt does not do, values that
    are no sizes or fractions: each by name."""
    for aliases in SIZES.values():
        names = [name for name in aliases if name in settings]
        if any(settings[name] != settings[names[0]] for name in names):
            yield " and ".join(f"{name} {settings[name]!r}" for name in names) + " disagree"
    dropouts = [settings.get(name, DEFAULT_DROPOUT) for name in DROPOUTS]
    if any(value != dropouts[0] for value in dropouts):
        pairs = zip(DROPOUTS, dropouts, strict=True)
        listed = ", ".join(f"{name} {value!r}" for name, value in pairs)
        yield f"{listed} differ, and regpt has one dropout"
    for name, values in IMPLEMENTED.items():
        if name in settings and settings[name] not in values:
            only = " or ".join(map(repr, values))
            yield f"{name} {settings[name]!r} is not implemented (only {only})"
    width, inner = settings.get("n_embd", settings.get("hidden_size")), settings.get("n_inner")
    if inner is not None and isinstance(width, int) and inner != 4 * width:
        yield f"n_inner {inner!r} is not implemented (only 4 n_embd = {4 * width})"
    for name, value in settings.items():
        is_number = type(value) in (int, float)
        if any(name in names for names in SIZES.values()):
            if type(value) is not int or value < 1:
                yield f"{name} must be a positive whole number, got {value!r}"
        elif name in DROPOUTS:
            if not (is_number and 0 <= value < 1):
                yield f"{name} must be a number from 0 to below 1, got {value!r}"
        elif name == "layer_norm_epsilon" and not (is_number and 0 < value < math.inf):
            yield f"{name} must be a positive number, got {value!r}"


def hugging_face_config(config: Mapping[str, int | float], *, dtype: str) -> dict[str, object]:
    """The settings to write for a GPTConfig, with what each known reader demands.

    n_ctx is there for llama.cpp's converter. The token ids are written even where they are null,
    because transformers' own default for an absent one is 50256.
    """
    known = {*SIZES, "dropout", "layer_norm_epsilon"}
    assert config.keys() == known, f"GPTConfig has other fields than config.json: {config.keys()}"
    end_of_text = end_of_text_id(config)
    dropouts = dict.fromkeys(DROPOUTS, float(config["dropout"]))
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": end_of_text,
        "dtype": dtype,
        "eos_token_id": end_of_text,
        "initializer_range": 0.02,
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "model_type": "gpt2",
        "n_ctx": config["block_size"],
        "n_embd": config["n_embd"],
        "n_head": config["n_head"],
        "n_inner": None,
        "n_layer": config["n_layer"],
        "n_positions": config["block_size"],
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": config["vocab_size"],
        **dropouts,
    }


def end_of_text_id(config: Mapping[str, int | float]) -> int | None:
    """GPT-2's end of text, if the vocabulary reaches it."""
    return END_OF_TEXT_ID if config["vocab_size"] >= VOCAB_SIZE else None
