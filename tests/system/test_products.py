"""A product in pieces is the product."""

import pytest
import torch

from regpt.system import products
from regpt.system.products import product


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "columns"), [(601, 520), (1281, 520), (600, 500), (16, 70), (8, 70), (1, 1), (64, 300)]
)
def test_product_is_torchs(
    rows: int, columns: int, dtype: torch.dtype, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "MANY_ROWS", 16)
    monkeypatch.setattr(products, "WIDE", 32)
    generator = torch.Generator().manual_seed(1)
    a = (torch.randn(rows, 520, generator=generator) / 520**0.5).to(dtype)
    b = torch.randn(columns, 520, generator=generator).to(dtype).t()
    bias = torch.randn(columns, generator=generator).to(dtype) if with_bias else None
    expected = a.double() @ b.double() + (bias.double() if bias is not None else 0.0)
    rtol, atol = (2**-8, 2**-12) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    torch.testing.assert_close(product(a, b, bias=bias).double(), expected, rtol=rtol, atol=atol)
    out = torch.full((rows, columns), torch.nan, dtype=dtype)
    assert product(a, b, bias=bias, out=out) is out
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=atol)
