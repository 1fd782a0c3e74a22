"""One step: any split of a batch gives one gradient."""

import torch

from regpt import GPT, GPTConfig, find_runtime
from regpt.core.data import Batch
from regpt.core.optimizer import Optimizer, OptimizerConfig
from regpt.core.step import compute_gradients
from regpt.system.distributed import World
from regpt.training.distributed import GradientSum

TINY = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)
RUNTIME = find_runtime("cpu", dtype="fp32")


def test_four_micro_batches_equal_one() -> None:
    idx = torch.randint(0, 50257, (4, 16), generator=torch.Generator().manual_seed(0))
    targets = idx.roll(-1, 1)
    targets[3, 4:] = -100  # micro-batches of unequal weight
    batch = Batch(0, idx, targets, 4 * 16 - 12)
    gradients, results = [], []
    for micro_batch in (4, 1):
        torch.manual_seed(0)
        model = GPT(TINY)
        world = World(device=RUNTIME.device)
        results.append(
            compute_gradients(
                model,
                Optimizer(model, OptimizerConfig(), lr=1e-3),
                batch,
                RUNTIME,
                world,
                GradientSum(model, world),
                micro_batch=micro_batch,
                clip=None,
            )
        )
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[0].norm()
    assert abs(results[0].loss - results[1].loss) <= 1e-6 * results[0].loss
    assert abs(results[0].grad_norm - gradients[0].norm().item()) <= 1e-5 * results[0].grad_norm
