"""The decoder for a machine: the C kernel on a CPU, recorded steps on a GPU, else the plain path.

`kernels/` computes a whole step in one call, compiled on the machine it runs on. `choose_decoder`
takes it where it works, and says in one line why it does not.
"""

import math
from typing import Literal

from torch import Tensor

from regpt.core.kv_cache import KeyValueCache, PlainDecoder
from regpt.core.model import GPT
from regpt.fast.decoding.kernel_model import KernelCache, KernelModel, unusable_reason
from regpt.fast.decoding.panels import WEIGHT_FORMATS, WeightFormat
from regpt.fast.decoding.speeds import is_large, known_speed, speed_of
from regpt.system.errors import UserError
from regpt.system.runtime import DTYPES, gains_from_bf16

Engine = Literal["auto", "plain", "fast"]


class KernelDecoder(PlainDecoder):
    """Decoding in the C kernel; prompts and rows are handled as in the plain path."""

    def __init__(self, kernel: KernelModel) -> None:
        super().__init__(kernel.model)
        self.kernel = kernel

    def new_cache(self, length: int) -> KeyValueCache:
        return KernelCache(self.model.config, rows=1, length=length, dtype=self.kernel.cache_dtype)

    def read(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        return self.kernel.logits(idx, cache, top_k=self.top_k)

    def read_all(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        return self.kernel.all_logits(idx, cache, top_k=self.top_k)

    def absorb(self, tokens: Tensor) -> None:
        """Append one token to every row; the head, a third of the work, is not computed."""
        assert self.cache is not None, "prefill comes first"
        self.kernel.run(tokens[:, None], self.cache, wanted=())


def fastest_kind(model: GPT, rows: int) -> WeightFormat:
    """The dtype that writes so many rows in the least time on this machine, int8 included.

    Small models stay exact: reading their weights is not what a step waits for. Off a CPU nothing
    is measured: bf16 where `runtime`'s table has it.
    """
    if model.device.type != "cpu":
        return "bf16" if is_large(model) and gains_from_bf16(model.device) else "fp32"
    best: WeightFormat = "fp32"
    least = math.inf
    for kind in WEIGHT_FORMATS if is_large(model) else ():
        if unusable_reason(model.config, kind):
            continue
        speed = known_speed(model, kind) or speed_of(KernelModel(model, kind))
        if speed.of(rows) < least:
            best, least = kind, speed.of(rows)
    return best


def choose_decoder(model: GPT, *, engine: Engine, dtype: str) -> tuple[PlainDecoder, str | None]:
    """A decoder, and one line to tell the person if it is not the one hoped for.

    `fast` insists on the C kernel on a CPU, or on recorded steps on a GPU; `auto` takes the kernel
    on a CPU if it works; `plain` goes through the model. int8 exists in the kernel only.
    """
    if dtype not in WEIGHT_FORMATS:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(WEIGHT_FORMATS)}")
    kind: WeightFormat = dtype  # pyright: ignore[reportAssignmentType]
    on_cpu = model.device.type == "cpu"
    uses_fast = engine == "fast" or (engine == "auto" and on_cpu)
    if kind == "int8" and not uses_fast:
        raise UserError("dtype int8 exists on the fast engine only, on a cpu: use --engine fast")
    if not uses_fast:
        return PlainDecoder(model), None
    if model.device.type == "cuda" and kind != "int8":
        from regpt.fast.decoding.cuda_graphs import GraphDecoder

        return GraphDecoder(model, dtype=DTYPES[kind]), None
    if not on_cpu:
        raise UserError(
            f"the fast engine decodes {kind} on a cpu, not on {model.device}: use --engine plain"
        )
    reason = unusable_reason(model.config, kind)
    if reason is None:
        return KernelDecoder(KernelModel(model, kind)), None
    if engine == "fast" or kind == "int8":
        raise UserError(f"{reason}: use --dtype fp32 --engine plain")
    return PlainDecoder(model), f"{reason}; decoding on the plain path"
