"""Two small habits that all networks share: fold leading dimensions, return full precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision outputs as float32: densities are always computed in full precision (trap 25)."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def folded(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Let a network of `[N, latent]` accept `[..., latent]`: leading dimensions are folded and restored."""

    @wraps(forward)
    def wrapped(self: Any, z: Tensor) -> Tensor:
        out = forward(self, z.reshape(-1, z.shape[-1]))
        return out.reshape(*z.shape[:-1], *out.shape[1:])

    return wrapped
