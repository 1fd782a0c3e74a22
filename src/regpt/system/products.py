"""Matrix products on a CPU, cut where oneDNN takes the pieces faster than the whole.

torch hands bfloat16 products to oneDNN (3.12), whose plan for some shapes leaves half of the speed:
those in `is_slow`, and many rows by very many columns. Found on two threads with AMX;
`benchmarks/products.py` times a machine's.
"""

import torch
from torch import Tensor

MANY_ROWS = 512
WIDE = 8192
"""Columns at once of that many rows: of more, the rows are read from memory again and again."""


def product(
    a: Tensor, b: Tensor, *, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """a b, or a b + bias, as `torch.mm` and `torch.addmm` give them.

    Args:
        a: (n, k).
        b: (k, m), of the same dtype.
        bias: (m,), of the same dtype.
        out: takes the result, (n, m).
    """
    out = a.new_empty(len(a), b.shape[1]) if out is None else out
    rows, columns = out.shape
    if a.device.type != "cpu" or a.dtype != torch.bfloat16:
        multiply(a, b, bias, out)
    elif is_slow(rows, a.shape[1], columns):
        half = -(-rows // 2)
        multiply(a[:half], b, bias, out[:half])
        multiply(a[half:], b, bias, out[half:])
    elif rows >= MANY_ROWS and columns > WIDE and bias is None:
        for part, place in zip(b.split(WIDE, 1), out.split(WIDE, 1), strict=True):
            multiply(a, part, None, place)
    else:
        multiply(a, b, bias, out)
    return out


def is_slow(rows: int, inner: int, columns: int) -> bool:
    """Whether two halves of the rows are faster."""
    return 512 <= columns <= 1024 and columns <= rows <= 1280 and inner >= columns


def multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = a b + bias, in one piece."""
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)
