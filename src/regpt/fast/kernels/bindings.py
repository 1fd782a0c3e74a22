"""What decode.c is handed: its structures, field by field."""

import ctypes

FP32, BF16, INT8 = range(3)
"""The kinds of weights, as vectors.h numbers them."""


class CLinear(ctypes.Structure):
    """`Linear` of decode.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "sums")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    )


class CBlock(ctypes.Structure):
    """`Block` of decode.c."""

    _fields_ = (
        *((f"ln_{n}_{part}", ctypes.c_void_p) for n in (1, 2) for part in ("weight", "bias")),
        *((name, CLinear) for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj")),
    )


class CModel(ctypes.Structure):
    """`Model` of decode.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "layers", "heads", "width")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("wte", "wpe", "ln_f_weight", "ln_f_bias", "blocks")),
        ("head", CLinear),
        ("head_error", ctypes.c_void_p),
        ("head_size", ctypes.c_void_p),
    )


class CCall(ctypes.Structure):
    """`Call` of decode.c."""

    _fields_ = (
        ("cache", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                "cache_is_bf16",
                "layer_stride",
                "value_stride",
                "row_stride",
                "head_stride",
                "tokens",
            )
        ),
        *((name, ctypes.c_void_p) for name in ("ids", "rows", "positions")),
        ("outputs", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("wanted", "logits")),
        ("logits_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "q", "y", "h", "packed", "ranges", "scores")),
        *((name, ctypes.c_int64) for name in ("scores_stride", "threads", "top_k")),
        ("candidates", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("leaders", ctypes.c_void_p),
        ("shared", ctypes.c_void_p),
    )
