"""Mixtures of normals of full covariance: EM on given draws, and samples."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

JITTER = 1e-6
"""Added to every variance, that of a draw's own unit being 1; latents that are not used do not vary."""


class Components(NamedTuple):
    """What EM found, float64 on the CPU.

    shares `[K]`, means `[K, D]`, roots `[K, D, D]` (lower triangular), belongs `[N, K]`: p(k | z) of a draw.
    """

    shares: Tensor
    means: Tensor
    roots: Tensor
    belongs: Tensor


def find_components(z: Tensor, components: int, seed: int) -> Components:
    """EM from k-means on draws z `[N, D]`, in the draws' own units; at most N components."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.mixture import GaussianMixture

    z = z.double().cpu()
    centre, unit = z.mean(0), z.std(0).clamp_min(JITTER)
    own = ((z - centre) / unit).numpy()
    model = GaussianMixture(min(components, len(z)), reg_covar=JITTER, random_state=seed)
    with warnings.catch_warnings():
        # Of draws with fewer distinct values than components, or of EM that stops after its 100 steps.
        warnings.simplefilter("ignore", ConvergenceWarning)
        belongs = model.fit(own).predict_proba(own)
    shares, means, covariances, belongs = (
        torch.from_numpy(found) for found in (model.weights_, model.means_, model.covariances_, belongs)
    )
    roots = unit.unsqueeze(1) * torch.linalg.cholesky(covariances)
    return Components(shares, centre + unit * means, roots, belongs)


def sample_mixture(shares: Tensor, means: Tensor, roots: Tensor, n: int) -> Tensor:
    """`n` draws `[n, D]` of sum_k shares_k N(means_k, roots_k roots_k^T) from torch's global generator."""
    with torch.autocast(means.device.type, enabled=False):
        of = torch.multinomial(shares, n, replacement=True)
        noise = torch.randn(n, means.shape[1], 1, device=means.device)
        return means[of] + (roots[of] @ noise).squeeze(-1)
