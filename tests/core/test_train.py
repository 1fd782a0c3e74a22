"""One step: any split of a batch gives one gradient."""

import torch

from regpt import GPT, GPTConfig
from regpt.core.data import Batch
from regpt.core.optimizer import Optimizer, OptimizerConfig
from regpt.core.train import StepSettings, compute_gradients

TINY = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)


def test_four_micro_batches_equal_one() -> None:
    idx = torch.randint(0, 50257, (4, 16), generator=torch.Generator().manual_seed(0))
    targets = idx.roll(-1, 1)
    targets[3, 4:] = -100  # micro-batches of unequal weight
    batch = Batch(0, idx, targets, 4 * 16 - 12)
    gradients, results = [], []
    for micro_batch in (4, 1):
        torch.manual_seed(0)
        model = GPT(TINY)
        results.append(
            compute_gradients(
                model,
                Optimizer(model, OptimizerConfig(), lr=1e-3),
                batch,
                StepSettings(micro_batch=micro_batch),
            )
        )
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[0].norm()
    assert abs(results[0].loss - results[1].loss) <= 1e-6 * results[0].loss
    assert abs(results[0].grad_norm - gradients[0].norm().item()) <= 1e-5 * results[0].grad_norm
