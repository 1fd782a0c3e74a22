"""One row for all tokens that do not occur is exact: training both ways gives one model."""

import numpy as np
import pytest
import torch
from test_loss import plain_loss

from regpt import GPT, GPTConfig
from regpt.core.loss import next_token_loss
from regpt.core.optimizer import OptimizerConfig
from regpt.fast.training.compact_vocabulary import CompactVocabulary, compact, expand
from regpt.fast.training.optimizer import FastOptimizer as Optimizer

SHAPE = GPTConfig(block_size=16, vocab_size=200, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(3).choice([2, 3, 5, 7, 11, 13, 17, 19, 101, 199], size=400)


@pytest.fixture
def vocabulary() -> CompactVocabulary:
    return CompactVocabulary.of(TOKENS, 200)


def whole_model(vocabulary: CompactVocabulary) -> GPT:
    """A model whose rows for tokens that do not occur are zero, as the compact one starts."""
    model = GPT(SHAPE)
    with torch.no_grad():
        model.wte.weight[vocabulary.lookup() == len(vocabulary.kept)] = 0
    return model


def test_training_both_ways_gives_one_model(vocabulary: CompactVocabulary) -> None:
    # AdamW is what the embedding gets; Muon's bfloat16 would only enlarge the blocks' rounding
    whole = whole_model(vocabulary)
    other = GPT(SHAPE)
    other.load_state_dict(whole.state_dict())
    small = compact(other, vocabulary)
    assert len(small.wte.weight) == 11
    config = OptimizerConfig(clip=None)
    plain, fast = (Optimizer(model, config, lr=1e-2) for model in (whole, small))
    lookup = vocabulary.lookup()
    for step in range(12):
        tokens = torch.from_numpy(TOKENS[step * 33 : step * 33 + 33])
        x, y = tokens[:-1].view(2, 16), tokens[1:].view(2, 16)
        for optimizer in (plain, fast):
            optimizer.zero_grad()
        expected = plain_loss(whole, x, y, divisor=32)
        loss = next_token_loss(small, lookup[x], lookup[y], divisor=32)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)
        expected.backward()
        loss.backward()
        plain.step()
        fast.step()
    expanded = expand(small, vocabulary).state_dict()
    assert expected.item() < 4, "the models must have learned something"
    for parameter_name, tensor in whole.state_dict().items():
        if parameter_name.endswith("c_attn.bias"):
            continue  # the keys' bias has no true gradient: AdamW scales up its rounding
        difference = (expanded[parameter_name] - tensor).norm()
        assert difference <= 1e-3 * tensor.norm() + 1e-5, parameter_name


def test_compact_and_expand_are_inverse(vocabulary: CompactVocabulary) -> None:
    model = whole_model(vocabulary)
    again = expand(compact(model, vocabulary), vocabulary)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.h is model.h


def test_rows_of_an_optimizer_state_go_both_ways(vocabulary: CompactVocabulary) -> None:
    small = torch.randn(11, 4)
    whole = vocabulary.expand_rows(small)
    assert whole.shape == (200, 4)
    assert torch.equal(vocabulary.compact_rows(whole), small)
