"""A key-value cache that remembers which rows began with the same tokens.

Each row has its own copy, but the C kernel reads what rows share from the first of them: once from
memory, and for the others from the processor's caches.
"""

import torch
from torch import Tensor

from regpt.core.kv_cache import KeyValueCache
from regpt.core.model import GPTConfig


class KernelCache(KeyValueCache):
    """`KeyValueCache` for the C kernel, which looks at nothing beyond a row's end."""

    def __init__(
        self, config: GPTConfig, *, rows: int, length: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(config, rows=rows, length=length, dtype=dtype, clean=False)
        self.leaders = list(range(rows))
        """For each row, the first row that has the same first tokens."""
        self.shared = [0] * rows
        """How many tokens each row has in common with its leader."""

    def prefixes(self) -> tuple[Tensor, Tensor] | None:
        """`leaders` and `shared`, (B,) int64 each; None if no row shares anything."""
        self._fit()
        return (torch.tensor(self.leaders), torch.tensor(self.shared)) if any(self.shared) else None

    def _fit(self) -> None:
        """Rows that were joined from several caches share nothing."""
        rows = len(self.lengths)
        if len(self.leaders) != rows:
            self.leaders, self.shared = list(range(rows)), [0] * rows

    def cut(self, lengths: list[int]) -> None:
        """Forget the tokens of each row from these lengths on."""
        self._fit()
        super().cut(lengths)
        self.shared = [
            min(shared, lengths[row], lengths[leader])
            for row, (leader, shared) in enumerate(zip(self.leaders, self.shared, strict=True))
        ]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, (n,) int64, in this order; repeat a row to branch it."""
        self._fit()
        sources = rows.tolist()
        groups = [self.leaders[source] for source in sources]
        common = [self.shared[source] or self.lengths[source] for source in sources]
        super().keep(rows)
        self.leaders = [groups.index(group) for group in groups]
        self.shared = [
            min(common[row], common[leader]) if groups.count(groups[row]) > 1 else 0
            for row, leader in enumerate(self.leaders)
        ]
