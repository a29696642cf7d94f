"""Bounds and their gradient estimators: identities, and a one-dimensional model solved by quadrature."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from datasets.spec import UserError
from methods.parts.latents import Diagonal
from methods.parts.objectives import (
    check_estimator,
    check_samples,
    importance_surrogate,
    kl_to_standard_normal,
    looser_bound,
)
from methods.parts.posteriors import mixture_log_prob

# The one-dimensional model: z ~ N(0, 1), x | z ~ N(1.5 z, 0.8^2), x = 1 observed; experts N(mean, sd^2).
X, SLOPE, NOISE = 1.0, 1.5, 0.8
ONE = ((0.2,), (0.6,))
TWO = ((0.2, 1.2), (0.6, 0.9))


def numpy_log_weight(z: np.ndarray, means: tuple[float, ...], sds: tuple[float, ...]) -> np.ndarray:
    experts = [norm.logpdf(z, m, s) for m, s in zip(means, sds, strict=True)]
    mixture = logsumexp(experts, axis=0) - math.log(len(means))
    return norm.logpdf(z) + norm.logpdf(X, SLOPE * z, NOISE) - mixture


@lru_cache
def reference_gradient(means: tuple[float, ...], sds: tuple[float, ...], samples: int) -> float:
    """d L / d means[0] by Gauss-Hermite quadrature over the K samples and a central difference."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    grids = np.meshgrid(*[nodes] * samples, indexing="ij")
    mass = np.prod(np.meshgrid(*[weights / weights.sum()] * samples, indexing="ij"), axis=0)

    def bound(means: tuple[float, ...]) -> float:
        total = 0.0
        for mean, sd in zip(means, sds, strict=True):
            a = np.stack([numpy_log_weight(mean + sd * e, means, sds) for e in grids])
            total += float((mass * (logsumexp(a, axis=0) - math.log(samples))).sum())
        return total / len(means)

    h = 1e-5
    up, down = (means[0] + h, *means[1:]), (means[0] - h, *means[1:])
    return (bound(up) - bound(down)) / (2 * h)


@lru_cache
def estimate(
    means: tuple[float, ...], sds: tuple[float, ...], samples: int, estimator: str, n: int = 20_000
) -> tuple[float, float]:
    """Mean and standard error of the estimator of d L / d means[0], `n` independent replicates."""
    torch.manual_seed(samples)
    locations = [torch.full((n, 1), m, dtype=torch.float64, requires_grad=True) for m in means]
    experts = [
        Diagonal(m, torch.full((n, 1), s, dtype=torch.float64)) for m, s in zip(locations, sds, strict=True)
    ]
    z = torch.stack([q.rsample(samples) for q in experts])
    densities = [q.detach() for q in experts] if estimator == "dreg" else experts
    joint = Normal(0.0, 1.0).log_prob(z) + Normal(SLOPE * z, NOISE).log_prob(torch.tensor(X))
    a = joint.squeeze(-1) - mixture_log_prob(densities, z)
    importance_surrogate(a, [z], estimator).sum().backward()
    gradient = locations[0].grad
    return gradient.mean().item(), gradient.std().item() / math.sqrt(n)


def test_one_sample_gives_the_elbo() -> None:
    torch.manual_seed(0)
    a = torch.randn(5, 1, 7)
    assert torch.equal(looser_bound(a), a[:, 0].mean(0))


def test_looser_bound_against_numpy() -> None:
    a = np.random.default_rng(0).normal(scale=30, size=(3, 4, 6))
    expected = np.log(np.exp(a - a.max(1, keepdims=True)).mean(1)) + a.max(1)
    np.testing.assert_allclose(looser_bound(torch.from_numpy(a)).numpy(), expected.mean(0))


def test_more_samples_tighten_the_bound_and_an_exact_posterior_closes_it() -> None:
    torch.manual_seed(0)
    evidence = norm.logpdf(X, 0, math.sqrt(SLOPE**2 + NOISE**2))
    precision = 1 + SLOPE**2 / NOISE**2
    exact = Diagonal(
        torch.full((500, 1), SLOPE * X / NOISE**2 / precision).double(),
        torch.full((500, 1), precision**-0.5).double(),
    )
    rough = Diagonal(torch.zeros(500, 1).double(), torch.ones(500, 1).double())
    values = {}
    for name, q in (("exact", exact), ("rough", rough)):
        for samples in (1, 5, 50):
            z = torch.stack([q.rsample(samples)])
            joint = Normal(0.0, 1.0).log_prob(z) + Normal(SLOPE * z, NOISE).log_prob(torch.tensor(X))
            values[name, samples] = looser_bound(joint.squeeze(-1) - q.log_prob(z))
    for samples in (1, 5, 50):
        torch.testing.assert_close(values["exact", samples], torch.full((500,), evidence).double())
    means = [values["rough", samples].mean().item() for samples in (1, 5, 50)]
    assert means[0] < means[1] < means[2] < evidence + 0.05


@pytest.mark.parametrize("samples", [1, 4])
def test_dreg_and_iwae_share_the_decoder_gradient(samples: int) -> None:
    torch.manual_seed(0)
    experts = [Diagonal(torch.randn(8, 3), torch.rand(8, 3) + 0.5) for _ in range(2)]
    z = torch.stack([q.rsample(samples) for q in experts])
    gradients = {}
    for estimator in ("iwae", "dreg", "dreg_compat"):
        decoder = torch.ones(3, requires_grad=True)
        sample = z.clone().requires_grad_()
        a = -(sample * decoder - 1).square().sum(-1) - mixture_log_prob(experts, sample)
        importance_surrogate(a, [sample], estimator).sum().backward()
        gradients[estimator] = decoder.grad
    torch.testing.assert_close(gradients["dreg"], gradients["iwae"])
    torch.testing.assert_close(gradients["dreg_compat"], gradients["iwae"])


@pytest.mark.parametrize(("model", "samples"), [(ONE, 1), (ONE, 2), (ONE, 3), (TWO, 1), (TWO, 2), (TWO, 3)])
def test_iwae_gradient_is_unbiased(model: tuple, samples: int) -> None:
    mean, error = estimate(*model, samples, "iwae")
    assert abs(mean - reference_gradient(*model, samples)) < 4.5 * error


@pytest.mark.parametrize(("model", "samples"), [(ONE, 1), (ONE, 2), (ONE, 3), (TWO, 1)])
def test_dreg_is_unbiased_for_one_expert_and_for_a_mixture_at_one_sample(model: tuple, samples: int) -> None:
    mean, error = estimate(*model, samples, "dreg")
    assert abs(mean - reference_gradient(*model, samples)) < 4.5 * error
    assert error < estimate(*model, samples, "iwae")[1]  # what it is for


@pytest.mark.parametrize("samples", [2, 3])
def test_dreg_is_biased_for_mixtures_at_more_samples(samples: int) -> None:
    mean, error = estimate(*TWO, samples, "dreg")
    # By quadrature the bias is 0.03 at K = 2 and 0.05 at K = 3, a quarter of and once the gradient itself.
    assert mean - reference_gradient(*TWO, samples) > 8 * error
    assert mean - reference_gradient(*TWO, samples) > 0.02


def test_released_dreg_is_biased_even_for_one_expert() -> None:
    mean, error = estimate(*ONE, 2, "dreg_compat")
    assert abs(mean - reference_gradient(*ONE, 2)) > 20 * error


def test_kl_against_torch() -> None:
    torch.manual_seed(0)
    q = Diagonal(torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1)
    expected = kl_divergence(Normal(q.location, q.scale), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(q), expected)
    with pytest.raises(ValueError, match="normal"):
        kl_to_standard_normal(Diagonal(q.location, q.scale, laplace=True))


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="'iwae' or 'dreg'"):
        check_estimator("vimco", ("iwae", "dreg"))
    with pytest.raises(UserError, match="samples=0"):
        check_samples(0)
