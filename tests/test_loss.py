"""The summed loss is the model's mean loss, times the targets."""

import torch

from regpt import GPT, GPTConfig
from regpt.loss import next_token_loss


def test_the_sum_over_targets_is_the_mean_times_their_number() -> None:
    model = GPT(GPTConfig(block_size=16, vocab_size=60, n_layer=1, n_head=2, n_embd=16))
    idx = torch.randint(0, 60, (3, 16))
    targets = idx.roll(-1, 1)
    targets[2, 9:] = -100
    _, mean = model(idx, targets)
    assert mean is not None
    torch.testing.assert_close(next_token_loss(model, idx, targets) / (48 - 7), mean)
