"""Which examples of a split or of a draw stand for all of it."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_rows(total: int, n: int) -> Tensor:
    """`min(n, total)` distinct positions below `total`, ascending, the same for every method and seed.

    A fixed random choice, since the first n of a split may be sorted by class.
    """
    if n >= total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(20_240_711)  # any constant; it defines the choice
    return torch.randperm(total, generator=generator)[:n].sort().values


def within(rows: Tensor, start: int, count: int) -> Tensor:
    """Those of `rows` in the batch of `count` examples from `start` on, as positions in the batch."""
    return rows[(rows >= start) & (rows < start + count)] - start
