"""Closed forms of diagonal normals: divergence, weighted geometric mean, Jensen-Shannon (METHODS.md 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.parts.latents import Diagonal
from methods.parts.posteriors import stack


def _normal(*distributions: Diagonal) -> None:
    if any(q.laplace for q in distributions):
        raise ValueError("this closed form holds for normal distributions only")


def standard_normal_like(q: Diagonal) -> Diagonal:
    """N(0, I) in the shape, type and place of `q`: the prior expert."""
    return Diagonal(torch.zeros_like(q.location), torch.ones_like(q.scale))


def kl_divergence(q: Diagonal, p: Diagonal) -> Tensor:
    """KL(q || p) = sum_d [v / v' + (mu - mu')^2 / v' - 1 - log(v / v')] / 2, dashed symbols being p's.

    Leading dimensions of `[..., D]` broadcast; returns `[...]`. Raises ValueError for Laplace. METHODS.md 2.
    """
    _normal(q, p)
    ratio = (q.scale / p.scale).square()
    distance = ((q.location - p.location) / p.scale).square()
    return 0.5 * (ratio + distance - 1 - torch.log(ratio)).sum(-1)


def geometric_mean(experts: Sequence[Diagonal], weights: Sequence[float]) -> Diagonal:
    """The normalised prod_a q_a^{pi_a}, a normal again; per dimension (METHODS.md 2):

        P = sum_a pi_a / v_a,  mean = sum_a pi_a mu_a / v_a / P,  v = 1 / P.

    Experts are `[..., D]` of one shape, weights as many numbers >= 0 of sum 1. Raises ValueError for Laplace.
    """
    _normal(*experts)
    every = stack(experts)
    pi = every.location.new_tensor(weights).view(-1, *[1] * experts[0].location.dim())
    shares = pi / every.scale.square()
    precision = shares.sum(0)
    return Diagonal((shares * every.location).sum(0) / precision, precision.rsqrt())


def jensen_shannon(experts: Sequence[Diagonal], weights: Sequence[float]) -> Tensor:
    """sum_a pi_a KL(q_a || g), g the weighted geometric mean of all q_a; over `[..., D]`, returns `[...]`.

    The Jensen-Shannon divergence with a geometric in place of the arithmetic mean, which gives it a closed
    form. It carries gradient into every expert, through g too. Sutter et al. 2020, METHODS.md 2.3.
    """
    divergences = kl_divergence(stack(experts), geometric_mean(experts, weights))
    pi = divergences.new_tensor(weights).view(-1, *[1] * (divergences.dim() - 1))
    return (pi * divergences).sum(0)
