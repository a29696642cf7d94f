"""Aggregation of unimodal experts into q(z | X_S): products, mixtures, products over subsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from methods.parts.latents import Diagonal


def product(experts: Sequence[Diagonal], prior: bool = False) -> Diagonal:
    """Product of normal experts, per dimension with v = sigma^2 (METHODS.md 2):

        P = sum_a 1 / v_a (+ 1 with the prior expert N(0, 1)),  mean = sum_a mu_a / v_a / P,  v = 1 / P.

    Experts are `[..., D]` of one shape; so is the result. Raises ValueError for Laplace experts.
    """
    if any(e.laplace for e in experts):
        raise ValueError("a product of Laplace experts is no Laplace distribution; use normal experts")
    weights = torch.stack([e.scale.square().reciprocal() for e in experts])
    means = torch.stack([e.location for e in experts])
    precision = weights.sum(0) + (1.0 if prior else 0.0)
    return Diagonal((weights * means).sum(0) / precision, precision.rsqrt())


def subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets, small ones first, members in the given order."""
    names = tuple(names)
    return [s for size in range(1, len(names) + 1) for s in combinations(names, size)]


def stack(experts: Sequence[Diagonal]) -> Diagonal:
    """C components `[B, D]` as one distribution `[C, B, D]`."""
    location = torch.stack([e.location for e in experts])
    scale = torch.stack([e.scale for e in experts])
    return Diagonal(location, scale, experts[0].laplace)


def mixture_log_prob(components: Sequence[Diagonal], z: Tensor) -> Tensor:
    """log (1/C) sum_c q_c(z) for z `[..., B, D]` and components `[B, D]`; returns `[..., B]`."""
    logs = torch.stack([c.log_prob(z) for c in components])
    return logs.logsumexp(0) - math.log(len(components))


def mixture_rsample(
    components: Sequence[Diagonal], weights: Sequence[float] | None = None, chosen: Tensor | None = None
) -> Tensor:
    """One draw `[B, D]` of the mixture; the component is drawn anew for every example.

    weights: of the components, of sum 1 (None: uniform). chosen: the components `[B]` where they are drawn.
    """
    every = stack(components)
    batch = every.location.shape[1]
    if chosen is None and weights is None:
        chosen = torch.randint(len(components), (batch,), device=every.location.device)
    elif chosen is None:
        chosen = torch.multinomial(every.location.new_tensor(weights), batch, replacement=True)
    rows = torch.arange(batch, device=chosen.device)
    return Diagonal(every.location[chosen, rows], every.scale[chosen, rows], every.laplace).rsample()


def mixture_mean(components: Sequence[Diagonal]) -> Tensor:
    """Mean of the uniform mixture: the mean of the components' locations `[B, D]`."""
    return torch.stack([c.location for c in components]).mean(0)
