"""bfloat16 products of a training step of the 124M, whole and as `regpt.system.products` cuts them.

    python benchmarks/products.py [--rows 1024] [--seconds 1]

Both take turns, on operands from memory. Prints TFLOP/s (medians) and, last, one JSON object.
"""

import argparse
import json
import statistics
import time

from regpt.system.malloc import keep_pages
from regpt.system.openmp import spin_briefly

keep_pages()
spin_briefly()

import torch  # noqa: E402

from regpt.system.products import product  # noqa: E402

FORWARD = ((768, 768), (768, 2304), (768, 3072), (3072, 768), (768, 50304))
"""Channels into and out of each layer; backward multiplies by the matrix itself."""


def measure(rows: int, b: torch.Tensor, seconds: float) -> tuple[float, float]:
    """TFLOP/s of torch's product and of ours."""
    inner, columns = b.shape
    a = torch.randn(rows, inner).bfloat16()
    out, passing = torch.empty(rows, columns, dtype=torch.bfloat16), torch.zeros(1 << 26)
    taken: dict[object, list[float]] = {torch.mm: [], product: []}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(taken[product]) < 3:
        for way in (torch.mm, product, product, torch.mm):
            passing += 1.0  # empties the caches
            began = time.perf_counter()
            way(a, b, out=out)  # pyright: ignore[reportCallIssue]
            taken[way].append(time.perf_counter() - began)
    rates = (2e-12 * rows * inner * columns / statistics.median(t) for t in taken.values())
    return next(rates), next(rates)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each product")
    given = parser.parse_args()
    figures = {}
    print(f"{f'{given.rows} rows by':<24}    whole   in pieces  TFLOP/s")
    for inner, columns in FORWARD:
        weight = torch.randn(columns, inner).bfloat16()
        for matrix in (weight.t(), weight):
            turned = "" if matrix is weight else ", turned"
            name = f"{matrix.shape[0]} x {matrix.shape[1]}{turned}"
            figures[name] = whole, pieces = measure(given.rows, matrix, given.seconds)
            print(f"{name:<24}{whole:9.2f}{pieces:12.2f}")
    print(json.dumps({"benchmark": "products", "rows": given.rows, "figures": figures}))


if __name__ == "__main__":
    main()
