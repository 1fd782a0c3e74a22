"""config.json, both ways: Hugging Face's settings of a GPT-2 and the fields of our GPTConfig.

A setting is one of four kinds, and each is in a table below: a size we need, a setting that
changes the mathematics and of which we implement some values, a setting known to have no part in
the forward pass, and everything else. Everything else is refused by name: a setting we have never
heard of may be the one that makes this model another model. A setting that is null is not set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

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
}
"""Settings that change the mathematics, with the values that mean GPT-2."""

_HARMLESS_GROUPS = (
    # what the file is, who wrote it, for which class and in which dtype (read from the tensors)
    "_name_or_path name_or_path _commit_hash architectures dtype torch_dtype transformers_version "
    "tokenizer_class finetuning_task tf_legacy_loss torchscript use_bfloat16",
    # how to begin and how to run: checkpointing, caching, what to return, and the same attention
    # in another order (reorder_and_upcast_attn computes it in fp32, as we do anyway)
    "initializer_range gradient_checkpointing use_cache reorder_and_upcast_attn is_decoder "
    "_attn_implementation attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal "
    "chunk_size_feed_forward cross_attention_hidden_size output_attentions output_hidden_states "
    "output_past return_dict tie_last_hidden_states",
    # n_positions once more, for readers of the first versions; where the two differ, transformers
    # takes n_positions, and so do we
    "n_ctx",
    # classification heads, which we do not have: their tensors would be refused
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj id2label label2id num_labels _num_labels problem_type n_special "
    "predict_special_tokens",
    # text generation, which the caller decides here
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix "
    "task_specific_params bad_words_ids begin_suppress_tokens diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty "
    "forced_bos_token_id forced_eos_token_id length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores "
    "remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature "
    "top_k top_p typical_p",
)
HARMLESS = frozenset(name for group in _HARMLESS_GROUPS for name in group.split())
"""Settings with no part in the forward pass of a language model."""

_HANDLED = {"model_type", "n_inner", "layer_norm_epsilon", *DROPOUTS}.union(*SIZES.values())


def read_config(directory: Path) -> dict[str, int | float]:
    """The keyword arguments of GPTConfig that a directory's config.json asks for.

    Raises `UserError` in one line for a file that is missing or damaged, for another architecture,
    for sizes that are missing, and for every setting we do not implement, each by name.
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
    problems = _contradictions(settings) + _unimplemented(settings) + _not_numbers(settings)
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    config: dict[str, int | float] = {
        field: cast(int, next(settings[name] for name in names if name in settings))
        for field, names in SIZES.items()
    }
    config["dropout"] = cast(float, settings.get(DROPOUTS[0], DEFAULT_DROPOUT))
    config["layer_norm_epsilon"] = cast(float, settings.get("layer_norm_epsilon", DEFAULT_EPSILON))
    return config


def _read_json(path: Path) -> dict[str, object]:
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


def _contradictions(settings: Mapping[str, object]) -> list[str]:
    """Two names of one size that disagree; three dropouts that are not one."""
    aliases = [tuple(n for n in names if n in settings) for names in SIZES.values()]
    problems = [
        " and ".join(f"{name} {settings[name]!r}" for name in names) + " disagree"
        for names in aliases
        if any(settings[name] != settings[names[0]] for name in names)
    ]
    dropouts = {name: settings.get(name, DEFAULT_DROPOUT) for name in DROPOUTS}
    if any(value != dropouts[DROPOUTS[0]] for value in dropouts.values()):
        listed = ", ".join(f"{name} {value!r}" for name, value in dropouts.items())
        problems.append(f"{listed} differ, and regpt has one dropout")
    return problems


def _unimplemented(settings: Mapping[str, object]) -> list[str]:
    """Every setting that asks for something regpt does not do, by name."""
    problems = [
        f"{name} {settings[name]!r} is not implemented (only {' or '.join(map(repr, values))})"
        for name, values in IMPLEMENTED.items()
        if name in settings and settings[name] not in values
    ]
    width = settings.get("n_embd", settings.get("hidden_size"))
    inner = settings.get("n_inner")
    if inner is not None and isinstance(width, int) and inner != 4 * width:
        problems.append(f"n_inner {inner!r} is not implemented (only 4 n_embd = {4 * width})")
    unknown = settings.keys() - IMPLEMENTED.keys() - HARMLESS - _HANDLED
    problems += [
        f"setting {name!r} is unknown to regpt and might change the model"
        for name in sorted(unknown)
    ]
    return problems


def _not_numbers(settings: Mapping[str, object]) -> list[str]:
    """Sizes that are not positive whole numbers, fractions that are not numbers."""
    problems = []
    for name, value in settings.items():
        if any(name in names for names in SIZES.values()):
            if type(value) is not int or value < 1:
                problems.append(f"{name} must be a positive whole number, got {value!r}")
        elif name in DROPOUTS:
            if type(value) not in (int, float) or not 0 <= cast(float, value) < 1:
                problems.append(f"{name} must be a number from 0 to below 1, got {value!r}")
        elif name == "layer_norm_epsilon" and (
            type(value) not in (int, float) or not 0 < cast(float, value) < float("inf")
        ):
            problems.append(f"{name} must be a positive number, got {value!r}")
    return problems


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
