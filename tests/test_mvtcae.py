"""MVTCAE: its objective written out, its limits in alpha, its product without prior expert."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from vae_support import NOW, SPEC, assert_same_descent, batch, build, exact, log_density, moments, seeded

from methods.mvtcae import MVTCAE


@pytest.mark.parametrize("alpha", [0.0, 5 / 6, 1.0])
def test_loss_is_the_papers_objective(alpha: float) -> None:
    method, x = build(MVTCAE, alpha=alpha, beta=0.7).double(), exact(batch())
    loss = seeded(method, x)

    experts = moments(method, x)
    precision = sum(1 / v for _, v in experts.values())
    q = Normal(sum(m / v for m, v in experts.values()) / precision, precision**-0.5)
    torch.manual_seed(0)
    z = q.mean + q.stddev * torch.randn(6, 4, dtype=torch.float64)
    likelihood = sum(log_density(method, x, name, z) for name in SPEC.names)
    to_experts = sum(kl_divergence(q, Normal(m, v.sqrt())).sum(-1) for m, v in experts.values())
    to_prior = kl_divergence(q, Normal(torch.zeros_like(z), torch.ones_like(z))).sum(-1)
    bound = (3 - alpha) / 3 * likelihood - 0.7 * (alpha / 3 * to_experts + (1 - alpha) * to_prior)
    assert_same_descent(method, loss, -bound.mean())


def test_with_alpha_zero_it_is_the_elbo_of_the_product() -> None:
    method, x = build(MVTCAE, alpha=0.0, beta=1.0).double(), exact(batch())
    loss = seeded(method, x)
    experts = {n: e.z for n, e in method.experts(x).items()}
    torch.manual_seed(0)
    z = method.posterior_sample(experts)
    location = method.posterior_mean(experts)
    scale = sum(e.scale**-2 for e in experts.values()) ** -0.5
    log_ratio = kl_divergence(Normal(location, scale), Normal(0.0, 1.0)).sum(-1)
    elbo = sum(method.log_likelihoods(x, z).values()) - log_ratio
    torch.testing.assert_close(loss, -elbo.mean())


def test_the_product_has_no_prior_expert() -> None:
    method, x = build(MVTCAE).eval().double(), exact(batch())
    for given in (("photo",), ("photo", "caption"), SPEC.names):
        experts = {n: moments(method, x)[n] for n in given}
        precision = sum(1 / v for _, v in experts.values())
        mean = sum(m / v for m, v in experts.values()) / precision
        torch.testing.assert_close(method.encode({n: x[n] for n in given})["z"], mean)
        torch.manual_seed(0)
        found = {n: e.z for n, e in method.experts({n: x[n] for n in given}).items()}
        z = torch.stack([method.posterior_sample(found) for _ in range(2000)])
        torch.testing.assert_close(z.std(0), precision**-0.5, rtol=0.1, atol=0)


def test_divergences_to_the_experts_train_them_too() -> None:
    """A step on the KLs alone moves each expert towards the joint posterior, not only the reverse."""
    method, x = build(MVTCAE, alpha=1.0, image_weight=0.0, text_weight=0.0), batch()
    before = method(x, NOW).terms["kl_experts"]
    optimiser = torch.optim.Adam(method.encoders.parameters(), 1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        seeded(method, x).backward()
        optimiser.step()
    assert method(x, NOW).terms["kl_experts"] < 0.9 * before


def test_networks_run_once_per_modality_and_step() -> None:
    method, calls = build(MVTCAE), Counter()
    for kind in ("encoders", "decoders"):
        for name, network in getattr(method, kind).items():
            network.register_forward_hook(lambda *_, key=(kind, name): calls.update([key]))
    method(batch(), NOW)
    assert len(calls) == 6 and set(calls.values()) == {1}
