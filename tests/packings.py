"""A small GPT-2 for the tests of packed decoding, its texts, and what packs it."""

from collections.abc import Iterator

import pytest
import torch
from test_model import sharpen

from regpt import GPT, GPTConfig
from regpt.fast.decoding.kernel_model import unavailable_format
from regpt.fast.decoding.panels import WeightFormat
from regpt.fast.decoding.topk_sampling import words_are_known
from regpt.fast.kernels import build
from regpt.fast.kernels.variants import VARIANTS

SHAPE = GPTConfig(block_size=48, vocab_size=50257, n_layer=2, n_head=4, n_embd=64)
ERROR: dict[WeightFormat, float] = {"fp32": 1e-5, "bf16": 1e-2, "int8": 3e-2}  # of the logits' norm


def usable(kind: WeightFormat) -> None:
    """Skip the test where there is no kernel."""
    reason = unavailable_format(kind)
    if reason is not None:
        pytest.skip(reason)


def forget_kernels() -> None:
    """Let them be loaded anew, by what the environment says then."""
    build.found_library.cache_clear()
    build.TRIED.clear()
    words_are_known.cache_clear()


@pytest.fixture(scope="module", params=[v.name for v in VARIANTS if v.lacking() is None])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Kernels for each set of instructions that this machine has, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGPT_CPU", request.param)
        forget_kernels()
        yield request.param
    forget_kernels()


def small_gpt() -> GPT:
    torch.manual_seed(8)
    return sharpen(GPT(SHAPE), 0.1).eval()


def texts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 50257, (n,), generator=generator).tolist() for n in lengths]
