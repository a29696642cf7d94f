"""Bounds on the log-likelihood and their gradient estimators.

Shapes: `log_weights` `[M, K, B]` holds a_{m,k} = log p(X, z) - log q(z | X) at z = z_m^k, the k-th of K
draws from expert m; samples are `[M, K, B, D]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.spec import UserError
from methods.parts.latents import Diagonal


def check_estimator(estimator: str, allowed: Sequence[str]) -> str:
    """`estimator` if it is among `allowed`, else UserError."""
    if estimator not in allowed:
        raise UserError(f"estimator '{estimator}' is unknown; choose {' or '.join(map(repr, allowed))}")
    return estimator


def check_samples(samples: int) -> int:
    """The number K of importance samples if it is possible, else UserError."""
    if samples < 1:
        raise UserError(f"samples={samples} is impossible; draw at least 1 sample per expert")
    return samples


def looser_bound(log_weights: Tensor) -> Tensor:
    """(1/M) sum_m log (1/K) sum_k exp a_{m,k} `[B]`: one importance bound per expert, averaged (MMVAE).

    With K = 1 it is the ELBO of the mixture posterior with stratified components.
    """
    return (log_weights.logsumexp(1) - math.log(log_weights.shape[1])).mean(0)


def reweighted(log_weights: Tensor, samples: Sequence[Tensor]) -> Tensor:
    """Surrogate `[B]` of the doubly reparametrised gradient (Tucker et al. 2019; MMVAE):

        (1/M) sum_m sum_k omega_{m,k} a_{m,k},  omega = sg[softmax_k a_{m,k}],

    and the gradient flowing into each of `samples` is multiplied by omega once more. It is DReG only if
    the posterior densities inside a_{m,k} have constant parameters; for a mixture with K > 1 it is biased
    (METHODS.md 2.2). Its value is not the bound; log `looser_bound` instead.
    """
    omega = log_weights.detach().softmax(1)
    for sample in samples:
        if sample.requires_grad:
            sample.register_hook(lambda gradient: gradient * omega.unsqueeze(-1))
    return (omega * log_weights).sum(1).mean(0)


def importance_surrogate(log_weights: Tensor, samples: Sequence[Tensor], estimator: str) -> Tensor:
    """What to ascend `[B]`: the bound itself for `iwae`, the reweighted surrogate for the DReG kinds."""
    return looser_bound(log_weights) if estimator == "iwae" else reweighted(log_weights, samples)


def kl_to_standard_normal(q: Diagonal) -> Tensor:
    """KL(N(mu, v) || N(0, I)) = sum_d (v + mu^2 - 1 - log v) / 2, over `[..., D]`; returns `[...]`."""
    if q.laplace:
        raise ValueError("this closed form holds for normal distributions only")
    variance = q.scale.square()
    return 0.5 * (variance + q.location.square() - 1 - torch.log(variance)).sum(-1)
