"""Learning an energy by contrast with chains (P1 Eqn 2 and 10), and noise to start a chain from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.parts.langevin import State


def to_model(x: Mapping[str, Tensor]) -> Batch:
    """Images [0, 1] -> [-1, 1], the units of every energy on images; token ids as they are."""
    return {name: 2 * v - 1 if v.is_floating_point() else v for name, v in x.items()}


def to_data(x: Mapping[str, Tensor]) -> Batch:
    """Images [-1, 1] -> [0, 1], not clamped; token ids as they are."""
    return {name: (v + 1) / 2 if v.is_floating_point() else v for name, v in x.items()}


def uniform_images(spec: DataSpec, n: int, device: torch.device) -> State:
    """X_0 ~ U[-1, 1], every entry of every image `[n, C, H, W]` independent (METHODS 2.16)."""
    return {m.name: 2 * torch.rand(n, *m.shape, device=device) - 1 for m in spec.images}


def contrast(
    energy: Callable[[State], Tensor], x: Batch, negatives: Mapping[str, Tensor], penalty: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean U(x) - mean U(x-) + r (mean U(x)^2 + mean U(x-)^2), P1 Eqn 10; one pass over both.

    Descent lowers U on data and raises it where the chains end. Returns the loss and both means.
    """
    n = len(next(iter(x.values())))
    values = energy({name: torch.cat([x[name], negatives[name]]) for name in x})
    real, revised = values[:n], values[n:]
    loss = real.mean() - revised.mean()
    if penalty:
        loss = loss + penalty * (real.square().mean() + revised.square().mean())
    return loss, {"energy_data": real.mean(), "energy_revised": revised.mean()}
