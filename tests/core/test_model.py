"""The model is GPT-2: shape, initialisation, causality, equality with transformers."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from regpt import GPT, GPTConfig, UserError

TINY = GPTConfig(block_size=32, vocab_size=101, n_layer=3, n_head=4, n_embd=32)


def in_transformers(model: GPT) -> GPT2LMHeadModel:
    """The same weights in transformers' GPT-2."""
    config = model.config
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    state = reference.state_dict()
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            state[f"transformer.{name}"].copy_(tensor.t() if name.endswith(turned) else tensor)
    return reference


def sharpen(model: GPT, std: float = 0.2) -> GPT:
    """Draw all weights wider, so that nothing hides behind near-uniform logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std)
    return model


def test_the_124m_model_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert model.num_parameters() == GPTConfig().num_parameters() == 124_439_808
    assert len(model.state_dict()) == 148
    assert model.wte.weight.is_meta


@pytest.mark.parametrize(
    ("layers", "heads", "channels", "parameters"),
    [(24, 16, 1024, 354_823_168), (36, 20, 1280, 774_030_080), (48, 25, 1600, 1_557_611_200)],
)
def test_the_larger_sizes(layers: int, heads: int, channels: int, parameters: int) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=layers, n_head=heads, n_embd=channels))
    assert model.num_parameters() == model.config.num_parameters() == parameters


def test_logits_loss_and_gradients_equal_transformers() -> None:
    model = sharpen(GPT(TINY))
    reference = in_transformers(model)
    idx = torch.randint(0, 101, (3, 32))
    logits, loss = model(idx, idx.roll(-1, 1))
    expected = reference(idx).logits
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-5)
    assert loss is not None
    reference_loss = torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), idx.roll(-1, 1).flatten()
    )
    torch.testing.assert_close(loss, reference_loss, rtol=1e-5, atol=0.0)
    loss.backward()
    reference_loss.backward()
    tied = reference.transformer.wte.weight.grad
    assert (model.wte.weight.grad - tied).norm() <= 1e-4 * tied.norm()
    turned = reference.transformer.h[1].attn.c_attn.weight.grad.t()
    assert (model.h[1].attn.c_attn.weight.grad - turned).norm() <= 1e-4 * turned.norm()


def test_a_later_token_does_not_change_earlier_logits() -> None:
    model = sharpen(GPT(TINY))
    idx = torch.randint(0, 101, (1, 20))
    changed = idx.clone()
    changed[0, 11] = (changed[0, 11] + 1) % 101
    before, _ = model(idx)
    after, _ = model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


def test_initialisation_is_gpt2s() -> None:
    model = GPT(GPTConfig(block_size=64, vocab_size=3000, n_layer=8, n_head=4, n_embd=128))
    residual = 0.02 / math.sqrt(2 * 8)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            std = residual if name.endswith("c_proj.weight") else 0.02
            assert abs(parameter.std().item() / std - 1) < 0.05, name
            assert abs(parameter.mean().item()) < 0.1 * std, name


def test_every_tensor_is_drawn_once() -> None:
    torch.manual_seed(5)
    model = GPT(TINY)
    after_model = torch.rand(3)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.empty_like(parameter).normal_()
    assert torch.equal(after_model, torch.rand(3))


def test_first_loss_is_near_uniform() -> None:
    model = GPT(TINY)
    idx = torch.randint(0, 101, (4, 32))
    _, loss = model(idx, torch.randint(0, 101, (4, 32)))
    assert loss is not None
    assert abs(loss.item() - math.log(101)) < 0.1


def test_targets_of_minus_100_are_not_scored() -> None:
    model = sharpen(GPT(TINY))
    idx = torch.randint(0, 101, (1, 10))
    targets = idx.roll(-1, 1)
    _, whole = model(idx[:, :6], targets[:, :6])
    masked = targets.clone()
    masked[:, 6:] = -100
    _, part = model(idx, masked)
    torch.testing.assert_close(whole, part)


def test_loss_stays_float32_under_autocast() -> None:
    model = GPT(TINY)
    idx = torch.randint(0, 101, (2, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(idx, idx)
    assert logits.dtype == torch.bfloat16
    assert loss is not None
    assert loss.dtype == torch.float32


def test_rows_that_pad_the_vocabulary_never_show() -> None:
    model = sharpen(GPT(TINY))
    idx = torch.randint(0, 101, (1, 5))
    expected, _ = model(idx)
    model.wte.weight = torch.nn.Parameter(
        torch.cat([model.wte.weight.detach(), torch.ones(27, 32)])
    )
    logits, _ = model(idx)
    assert logits.shape == (1, 5, 101)
    torch.testing.assert_close(logits, expected)


def test_dropout_acts_in_training_only() -> None:
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=1, n_embd=16, dropout=0.5))
    idx = torch.randint(0, 50, (1, 8))
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_too_long_a_sequence_names_both_numbers() -> None:
    with pytest.raises(UserError, match=r"33 tokens.*block_size 32"):
        GPT(TINY)(torch.zeros(1, 33, dtype=torch.int64))


def test_idx_must_be_a_batch() -> None:
    with pytest.raises(UserError, match=r"\(B, T\)"):
        GPT(TINY)(torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 30}, "n_embd 30 is not a multiple of model.n_head 4"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTConfig(**{"n_head": 4, "n_embd": 32, **change})
