"""The portable draw over a whole vocabulary, for one text: `sampling.draw_portable`, sooner.

OpenAI's default is no top-k, so every token of the vocabulary takes part and needs its number. The
C kernel makes them; without it, or with a top-k, the plain draw is as good.
"""

import torch
from torch import Tensor

from regpt.core.sampling import SamplingParams, filtered, sample
from regpt.fast.kernels.build import load_library, unavailable_reason


def draw(logits: Tensor, params: SamplingParams, *, number: int, position: int) -> int:
    """The token that `sample` draws from logits (V,), in which a penalty is already."""
    if params.temperature == 0 or params.top_k is not None or unavailable_reason() is not None:
        numbers, positions = torch.tensor([number]), torch.tensor([position])
        return int(sample(logits[None], params, numbers=numbers, positions=positions))
    masked = filtered(logits[None].float(), params)[0]
    uniform = torch.empty(masked.shape[0], dtype=torch.float64)
    seed = params.seed & (2**64 - 1)
    place, threads = uniform.data_ptr(), torch.get_num_threads()
    load_library().regpt_philox(seed, number, position, len(uniform), place, threads)
    scores = masked.double() - torch.log(uniform).neg_().log_()
    return int(scores.argmax())  # of equal ones the first, as there
