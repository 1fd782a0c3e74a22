"""`regpt.core.optimizer.Optimizer` on faster classes of the same rules.

AdamW goes piece by piece where matrices keep bfloat16 copies (`adamw.py`), Muon over stacks of
equal shapes (`muon.py`). Gradients left in bfloat16 are scaled by the step, in float32.
"""

import torch
from torch import Tensor

from regpt.core.model import GPT
from regpt.core.optimizer import Optimizer, OptimizerConfig
from regpt.fast.training.adamw import PiecewiseAdamW
from regpt.fast.training.bf16_weights import shadow_of
from regpt.fast.training.muon import ShadowRows, StackedMuon


class FastOptimizer(Optimizer):
    """The same steps as `Optimizer`, sooner."""

    def __init__(self, model: GPT, config: OptimizerConfig, *, lr: float) -> None:
        keeps = any(shadow_of(parameter) is not None for parameter in model.parameters())
        adamw = PiecewiseAdamW if keeps else torch.optim.AdamW
        super().__init__(model, config, lr=lr, adamw=adamw, muon=StackedMuon)
        for matrix, pieces in self.pieces:
            copy = shadow_of(matrix)
            if copy is not None:
                for piece, low in zip(pieces, copy.tensor.split(len(pieces[0])), strict=True):
                    piece.shadow_rows = ShadowRows(copy, low)  # pyright: ignore

    def clip(self, limit: float | None) -> Tensor:
        """`Optimizer.clip`; gradients in bfloat16 stay as they are until the step scales them."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if all(gradient.dtype != torch.bfloat16 for gradient in gradients):
            return super().clip(limit)
        assert isinstance(self.adamw, PiecewiseAdamW)
        norm = self.adamw.norm(gradients)
        scale = 1.0
        if limit is not None and norm.isfinite():
            scale = min(limit / (norm.item() + 1e-6), 1.0)  # as torch has it
        for optimizer in (self.adamw, self.muon):
            if isinstance(optimizer, PiecewiseAdamW | StackedMuon):
                optimizer.scale = scale
        if scale != 1.0:
            for gradient in gradients:
                if gradient.dtype != torch.bfloat16:
                    gradient.mul_(scale)
        return norm
