"""Names, shapes and orientation: the agreement with our model and with transformers."""

import pytest
import torch
from checkpoints import TINY
from transformers import GPT2Config, GPT2LMHeadModel

from regpt import GPT, GPTConfig
from regpt.weights.names import is_mask, is_transposed, strip_prefixes, summarize, tensor_shapes

RELEASED = {
    124_439_808: (12, 12, 768),
    354_823_168: (24, 16, 1024),
    774_030_080: (36, 20, 1280),
    1_557_611_200: (48, 25, 1600),
}
"""The four released models: parameters, and layers, heads and channels."""


@pytest.mark.parametrize("parameters", RELEASED)
def test_the_shapes_of_the_released_models_on_the_meta_device(parameters: int) -> None:
    layers, heads, channels = RELEASED[parameters]
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=layers, n_head=heads, n_embd=channels))
        reference = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=channels))
    sizes = {"n_layer": layers, "n_embd": channels, "vocab_size": 50257, "block_size": 1024}
    shapes = tensor_shapes(TINY | sizes)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    theirs = {name: tuple(t.shape) for name, t in reference.transformer.state_dict().items()}
    assert theirs == {
        name: shape[::-1] if is_transposed(name) else shape for name, shape in shapes.items()
    }


def test_the_names_come_in_the_models_order() -> None:
    model = GPT(GPTConfig(**TINY))  # pyright: ignore
    assert list(tensor_shapes(TINY)) == list(model.state_dict())


def test_exactly_the_conv1d_matrices_are_turned() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=4, vocab_size=9))
    turned = {
        f"{name}.weight"
        for name, module in model.transformer.named_modules()
        if type(module).__name__ == "Conv1D"
    }
    assert len(turned) == 2 * 4
    assert {name for name in model.transformer.state_dict() if is_transposed(name)} == turned


def test_masks_are_told_from_biases() -> None:
    assert is_mask("h.11.attn.bias")
    assert is_mask("h.0.attn.masked_bias")
    for name in tensor_shapes(TINY):
        assert not is_mask(name)


def test_prefixes_are_stripped_in_any_order() -> None:
    assert strip_prefixes("module._orig_mod.transformer.h.0.ln_1.bias") == "h.0.ln_1.bias"
    assert strip_prefixes("lm_head.weight") == "lm_head.weight"


def test_summaries_name_the_first() -> None:
    names = [f"h.{layer}.ln_1.bias" for layer in range(12)]
    assert summarize(names) == f"{', '.join(names[:8])} and 4 more"
    assert summarize(names[:8]) == ", ".join(names[:8])
