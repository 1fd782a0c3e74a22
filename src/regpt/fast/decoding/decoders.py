"""Decoding on packed matrices: the fast paths beside `PlainDecoder`, on a CPU.

Two of them. `kernels/` computes a whole step in one call of a C kernel, compiled on the machine it
runs on. Where that cannot be, `PackedModel` is the same blocks written out over
`packed_linear.py`'s packed layers with as few torch operators per token as they need: the residual
stream and the LayerNorms stay in float32, GELU rides on its matrix product, attention runs over the
same key-value cache. `choose_decoder` picks what works, and says in one line why the C kernel does
not; where both do, the one that was measured to be faster on this machine (`speeds.py`).
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.core.kv_cache import KeyValueCache, LayerCache, PlainDecoder
from regpt.core.model import GPT, Block
from regpt.fast.decoding.cuda_graphs import GraphDecoder
from regpt.fast.decoding.kernel_model import NativeModel, misshapen, missing_native
from regpt.fast.decoding.packed_linear import KINDS, EngineName, Kind, PackedLinear, missing, pack
from regpt.fast.decoding.speeds import is_large, known_speed, speed_of
from regpt.system.errors import UserError
from regpt.system.memory import available_memory
from regpt.system.runtime import DTYPES, gains_from_bf16

Engine = Literal["auto", "plain", "fast"]


@dataclass(frozen=True, kw_only=True)
class PackedBlock:
    """One block's packed layers."""

    ln_1: nn.LayerNorm
    ln_2: nn.LayerNorm
    c_attn: PackedLinear
    attn_proj: PackedLinear
    c_fc: PackedLinear
    """With its GELU."""
    mlp_proj: PackedLinear

    @classmethod
    def of(cls, block: Block, kind: Kind) -> "PackedBlock":
        """Pack a block."""
        attn, mlp = block.attn, block.mlp
        return cls(
            ln_1=block.ln_1,
            ln_2=block.ln_2,
            c_attn=pack(attn.c_attn.weight, attn.c_attn.bias, kind),
            attn_proj=pack(attn.c_proj.weight, attn.c_proj.bias, kind),
            c_fc=pack(mlp.c_fc.weight, mlp.c_fc.bias, kind, gelu=True),
            mlp_proj=pack(mlp.c_proj.weight, mlp.c_proj.bias, kind),
        )


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm of (M, C) rows."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


class PackedModel:
    """A GPT's matrices, packed once; any number of decoders share it."""

    engine: EngineName = "torch"

    def __init__(self, model: GPT, kind: Kind) -> None:
        reason = missing(kind)
        if reason is not None:
            raise UserError(f"{reason}: use --dtype fp32 --engine plain")
        self.model = model
        self.kind: Kind = kind
        self.blocks = [PackedBlock.of(cast(Block, block), kind) for block in model.h]
        self.wte, self.wpe = model.wte.weight.detach(), model.wpe.weight.detach()
        self.head = pack(model.wte.weight[: model.config.vocab_size], None, kind)

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in: torch attends faster in float32."""
        return torch.float32

    @torch.inference_mode()
    def absorb(self, idx: Tensor, cache: KeyValueCache) -> None:
        """Append (B, T) tokens to the cache, and no more."""
        self.hidden(idx, cache)

    @torch.inference_mode()
    def all_logits(self, idx: Tensor, cache: KeyValueCache, *, top_k: int | None = None) -> Tensor:
        """Append (B, T) tokens to the cache; logits (B, T, V) float32 after each of them."""
        x = norm(self.model.ln_f, self.hidden(idx, cache))
        return self.head(x).float().view(*idx.shape, -1)

    @torch.inference_mode()
    def logits(self, idx: Tensor, cache: KeyValueCache, *, top_k: int | None = None) -> Tensor:
        """Append (B, T) tokens to the cache; logits (B, V) float32 of the token after the last."""
        x = self.hidden(idx, cache).view(*idx.shape, -1)
        return self.head(norm(self.model.ln_f, x[:, -1])).float()

    def hidden(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens to the cache; what the last block leaves, (B*T, C) float32."""
        B, T = idx.shape
        heads, C = self.model.config.n_head, self.model.config.n_embd
        positions = cache.positions(T)
        x = self.wte[idx].add_(self.wpe[positions]).view(B * T, C)
        mask = cache.mask(T)
        for index, block in enumerate(self.blocks):
            qkv = block.c_attn(norm(block.ln_1, x)).view(B, T, 3, heads, -1)
            y = attend(qkv.permute(2, 0, 3, 1, 4), cache.layer(index), mask)
            x = block.attn_proj.add(y.transpose(1, 2).reshape(B * T, C), x)
            x = block.mlp_proj.add(block.c_fc(norm(block.ln_2, x)), x)
        return x


def attend(qkv: Tensor, layer: LayerCache, mask: Tensor | None) -> Tensor:
    """Store keys and values, attend the queries to all of their rows: (B, nh, T, hs) float32.

    For one token a row two products over all heads are quicker than torch's attention, which works
    in tiles that one query leaves empty.
    """
    stored = layer.store(qkv[1:])
    q = qkv[0].to(stored.dtype)
    B, heads, T, size = q.shape
    if T > 1:
        keys, values = stored
        if mask is not None and layer.cache.places is None and layer.cache.start == 0:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    keys, values = stored.flatten(1, 2)  # (B * nh, stop, hs)
    scores = torch.bmm(q.reshape(B * heads, 1, size) * size**-0.5, keys.transpose(1, 2))
    if mask is not None:
        scores = scores.view(B, heads, -1).masked_fill_(~mask[:, 0], -torch.inf).view_as(scores)
    return torch.bmm(scores.softmax(-1), values).view(B, heads, 1, size)


class PackedDecoder(PlainDecoder):
    """Decoding through packed matrices; prompts and rows are handled as in the plain path."""

    def __init__(self, packed: PackedModel | NativeModel) -> None:
        super().__init__(packed.model)
        self.packed = packed

    def new_cache(self, length: int) -> KeyValueCache:
        """An empty cache of one row, as precise as the matrices need it."""
        native = isinstance(self.packed, NativeModel)
        return KeyValueCache(
            self.model.config,
            rows=1,
            length=length,
            dtype=self.packed.cache_dtype,
            clean=not native,  # the kernel looks at nothing beyond a row's end
        )

    def read(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens; logits (B, V) of the token after the last."""
        return self.packed.logits(idx, cache, top_k=self.top_k)

    def read_all(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens; logits (B, T, V) after each of them."""
        return self.packed.all_logits(idx, cache, top_k=self.top_k)

    def absorb(self, tokens: Tensor) -> None:
        """Append one token to every row; the head, a third of the work, is not computed."""
        assert self.cache is not None, "prefill comes first"
        self.packed.absorb(tokens[:, None], self.cache)


def pack_model(model: GPT, kind: Kind) -> tuple[PackedModel | NativeModel | None, str | None]:
    """The fastest packing that works here; and why the C kernel, or any, does not, in one line."""
    native = missing_native(kind) or misshapen(model.config)
    if native is None:
        # torch's int8 operators are deprecated and say so: not tried where they are not needed
        if kind != "int8" and is_large(model) and missing(kind) is None:
            return faster_packing(model, kind), None
        return NativeModel(model, kind), None
    reason = missing(kind)
    if reason is None:
        return PackedModel(model, kind), f"{native}; decoding through torch's operators"
    return None, reason


def faster_packing(model: GPT, kind: Kind) -> PackedModel | NativeModel:
    """The one that writes a row's tokens in less time here; both are tried the first time."""
    one, other = (known_speed(model, engine, kind) for engine in ("native", "torch"))
    native = None
    if one is None or other is None:
        native = NativeModel(model, kind)
        one = speed_of(native)
        size = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
        if other is None and available_memory(model.device) > 2 * size:
            other = speed_of(PackedModel(model, kind))
    if other is not None and other.of(1) < one.of(1):
        return PackedModel(model, kind)
    return native or NativeModel(model, kind)


def fastest_kind(model: GPT, rows: int) -> Kind:
    """The dtype that writes so many rows in the least time on this machine, int8 included.

    Small models stay exact: reading their weights is not what a step waits for. Off a CPU nothing
    is measured: bf16 where `runtime`'s table has it.
    """
    if model.device.type != "cpu":
        return "bf16" if is_large(model) and gains_from_bf16(model.device) else "fp32"
    best: Kind = "fp32"
    least = math.inf
    for kind in KINDS if is_large(model) else ():
        speed = known_speed(model, "native", kind) or known_speed(model, "torch", kind)
        packed = pack_model(model, kind)[0] if speed is None else None
        if packed is not None:
            speed = speed_of(packed)
        if speed is not None and speed.of(rows) < least:
            best, least = kind, speed.of(rows)
    return best


def choose_decoder(model: GPT, *, engine: Engine, dtype: str) -> tuple[PlainDecoder, str | None]:
    """A decoder, and one line to tell the person if it is not the one hoped for.

    `fast` insists on packed matrices, in the C kernel where it works, else in torch's operators;
    `auto` takes them on a CPU if they work; `plain` goes through the model. int8 exists packed
    only. On a GPU `fast` replays recorded steps.
    """
    if dtype not in KINDS:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(KINDS)}")
    kind: Kind = dtype  # pyright: ignore[reportAssignmentType]
    packs = engine == "fast" or (engine == "auto" and model.device.type == "cpu")
    if kind == "int8" and not packs:
        raise UserError("dtype int8 exists on the fast engine only, on a cpu: use --engine fast")
    if not packs:
        return PlainDecoder(model), None
    if model.device.type == "cuda" and kind != "int8":
        return GraphDecoder(model, dtype=DTYPES[kind]), None
    if model.device.type != "cpu":
        raise UserError(
            f"the fast engine decodes {kind} on a cpu, not on {model.device}: use --engine plain"
        )
    packed, note = pack_model(model, kind)
    if packed is not None:
        return PackedDecoder(packed), note
    if engine == "fast" or kind == "int8":
        raise UserError(f"{note}: use --dtype fp32 --engine plain")
    return PlainDecoder(model), f"{note}; decoding on the plain path"
