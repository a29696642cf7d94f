"""Normal experts pooled into one normal: Wasserstein barycentre, consensus of dependent experts, Hellinger.

Experts are `[..., D]` of one shape; so is the result. All pools are symmetric in the experts and return
a single one unchanged. Several equal experts are returned unchanged by all but the consensus, which gains
precision from every expert that is not fully correlated with the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from methods.parts.latents import Diagonal
from methods.parts.posteriors import stack


def _stacked(experts: Sequence[Diagonal]) -> Diagonal:
    if any(e.laplace for e in experts):
        raise ValueError("these pools hold for normal experts only; give normal experts")
    return stack(experts)


def barycentre(experts: Sequence[Diagonal]) -> Diagonal:
    """2-Wasserstein barycentre with equal weights: mean of the means, mean of the standard deviations

        N(mean_a mu_a, (mean_a sigma_a)^2) = argmin_q sum_a W_2^2(q, q_a).

    Raises ValueError for Laplace experts. Source: MWBVAE (Qiu et al. 2025), METHODS.md 2.11.
    """
    every = _stacked(experts)
    return Diagonal(every.location.mean(0), every.scale.mean(0))


def consensus(experts: Sequence[Diagonal], correlation: float) -> Diagonal:
    """Consensus of n experts whose errors have correlation rho, 0 <= rho < 1, per dimension:

        C_ii = sigma_i^2,  C_ij = rho sigma_i sigma_j,
        v = 1 / (1' C^-1 1),  mean = v 1' C^-1 mu.

    No matrix is inverted: with u = 1/sigma and k = rho / (1 + (n - 1) rho),
    C^-1 = [diag(u^2) - k u u'] / (1 - rho). Weights 1' C^-1 can be negative and put the mean outside the
    range of the experts. rho = 0 gives the product of experts.

    Raises ValueError for Laplace experts. Source: CoDE-VAE (Mancisidor et al. 2025), METHODS.md 2.12.
    """
    every, n = _stacked(experts), len(experts)
    u = every.scale.reciprocal()
    spread = 1 + (n - 1) * correlation
    weights = u * (u - correlation / spread * u.sum(0))
    # sum(u^2) - k sum(u)^2 as a sum of two squares: positive whatever the rounding.
    mean = u.mean(0)
    total = (u - mean).square().sum(0) + n * (1 - correlation) / spread * mean.square()
    return Diagonal((weights * every.location).sum(0) / total, ((1 - correlation) / total).sqrt())


class Overlaps(NamedTuple):
    """sqrt(q_i q_j) = B_ij N(m_ij, V_ij) of the pairs i <= j, in float64.

    `pairs` are their P index pairs, `log_weight` `[P, ...]` is log B_ij, plus log 2 for i < j, which
    stands for (j, i) too; `mean` and `variance` are `[P, ..., D]`.
    """

    pairs: list[tuple[int, int]]
    log_weight: Tensor
    mean: Tensor
    variance: Tensor

    def among(self, members: Sequence[int]) -> Overlaps:
        """The overlaps of the experts with these indices."""
        rows = [r for r, (i, j) in enumerate(self.pairs) if i in members and j in members]
        return Overlaps([self.pairs[r] for r in rows], *(t[rows] for t in self[1:]))


def overlaps(experts: Sequence[Diagonal]) -> Overlaps:
    """The overlaps of all pairs of normal experts:

        V_ij = 2 v_i v_j / (v_i + v_j),  m_ij = (mu_i v_j + mu_j v_i) / (v_i + v_j),
        log B_ij = sum_d [ log(2 sigma_i sigma_j / (v_i + v_j)) / 2 - (mu_i - mu_j)^2 / (4 (v_i + v_j)) ].

    The coefficients stay logarithms: over hundreds of dimensions they underflow (METHODS.md trap 18).
    """
    every = _stacked(experts)
    mean, scale = every.location.double(), every.scale.double()
    i, j = torch.triu_indices(len(experts), len(experts)).tolist()
    v_i, v_j = scale[i].square(), scale[j].square()
    both = v_i + v_j
    terms = 0.5 * torch.log(2 * scale[i] * scale[j] / both) - (mean[i] - mean[j]).square() / (4 * both)
    twice = torch.tensor([0.0 if a == b else math.log(2) for a, b in zip(i, j, strict=True)]).to(mean)
    log_weight = terms.sum(-1) + twice.view(-1, *[1] * (terms.dim() - 2))
    middle = (mean[i] * v_j + mean[j] * v_i) / both
    return Overlaps(list(zip(i, j, strict=True)), log_weight, middle, 2 * v_i * v_j / both)


def matched(parts: Overlaps, dtype: torch.dtype) -> Diagonal:
    """The normal with the moments of the mixture sum_ij B_ij N(m_ij, V_ij), computed in float64:

        mean = sum_ij B_ij m_ij / sum_ij B_ij,  v = sum_ij B_ij [(m_ij - mean)^2 + V_ij] / sum_ij B_ij.

    Centred, so that v is no difference of large numbers (METHODS.md trap 27). Returned in `dtype`.
    """
    weights = parts.log_weight.softmax(0).unsqueeze(-1)
    mean = (weights * parts.mean).sum(0)
    variance = (weights * ((parts.mean - mean).square() + parts.variance)).sum(0)
    return Diagonal(mean.to(dtype), variance.sqrt().to(dtype))


def hellinger(experts: Sequence[Diagonal]) -> Diagonal:
    """Moment-matched normal of the Hoelder pool with exponent 1/2, q proportional to (sum_a sqrt(q_a))^2.

    Raises ValueError for Laplace experts. Source: HELVAE (Vo, Valera 2026), METHODS.md 2.13.
    """
    return matched(overlaps(experts), experts[0].location.dtype)
