"""mmJSD: its bound written out, its divergence on a grid, its dynamic prior, its mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence
from vae_support import SPEC, assert_same_descent, batch, build, exact, log_density, moments, seeded

from methods.mmjsd import MMJSD
from methods.parts.latents import Diagonal
from methods.parts.normals import geometric_mean, jensen_shannon, standard_normal_like


@pytest.mark.parametrize("prior_component", [False, True])
@pytest.mark.parametrize("prior_weight", [None, 0.1])
def test_loss_is_the_papers_bound(prior_weight: float | None, prior_component: bool) -> None:
    method = build(MMJSD, beta=0.7, prior_weight=prior_weight, prior_component=prior_component).double()
    x = exact(batch())
    loss = seeded(method, x)

    pi = [0.25] * 4 if prior_weight is None else [0.1, 0.3, 0.3, 0.3]
    means, variances = zip(*moments(method, x).values(), strict=True)
    means = torch.stack([torch.zeros_like(means[0]), *means])
    variances = torch.stack([torch.ones_like(variances[0]), *variances])
    share = torch.tensor(pi, dtype=torch.float64)[:, None, None] / variances
    dynamic = Normal((share * means).sum(0) / share.sum(0), share.sum(0) ** -0.5)
    js = sum(
        p * kl_divergence(Normal(m, v.sqrt()), dynamic).sum(-1)
        for p, m, v in zip(pi, means, variances, strict=True)
    )

    torch.manual_seed(0)
    if prior_component:
        chosen = torch.multinomial(torch.tensor(pi, dtype=torch.float64), 6, replacement=True)
    else:
        chosen = torch.randint(3, (6,)) + 1
    rows = torch.arange(6)
    noise = torch.randn(6, 4, dtype=torch.float64)
    z = means[chosen, rows] + variances[chosen, rows].sqrt() * noise
    likelihood = sum(log_density(method, x, name, z) for name in SPEC.names)
    assert_same_descent(method, loss, (0.7 * js - likelihood).mean())


@pytest.mark.parametrize("weights", [(0.25,) * 4, (0.4, 0.3, 0.2, 0.1), (0.0, 0.5, 0.5, 0.0)])
def test_the_divergence_equals_a_grid_integral(weights: tuple[float, ...]) -> None:
    places, scales = (0.0, -1.0, 0.5, 2.0), (1.0, 0.4, 0.7, 1.3)
    z = np.linspace(-15, 15, 60_001)
    logs = norm.logpdf(z[:, None], places, scales)
    dynamic = logs @ np.array(weights)
    dynamic = dynamic - np.log(np.trapezoid(np.exp(dynamic), z))
    kls = np.trapezoid(np.exp(logs) * (logs - dynamic[:, None]), z, axis=0)

    experts = [
        Diagonal(torch.tensor([[p]], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64))
        for p, s in zip(places, scales, strict=True)
    ]
    found = geometric_mean(experts, weights).log_prob(torch.from_numpy(z)[:, None])
    np.testing.assert_allclose(found.numpy(), dynamic, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(jensen_shannon(experts, weights).item(), np.array(weights) @ kls, rtol=1e-8)


def test_with_all_weight_on_the_prior_the_dynamic_prior_is_the_prior() -> None:
    method, x = build(MMJSD, prior_weight=1.0).double(), exact(batch())
    experts = [e.z for e in method.experts(x).values()]
    dynamic = geometric_mean([standard_normal_like(experts[0]), *experts], method.weights)
    assert torch.equal(dynamic.location, torch.zeros_like(dynamic.location))
    assert torch.equal(dynamic.scale, torch.ones_like(dynamic.scale))
    z = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(dynamic.log_prob(z), method.prior.log_prob(z))
    # Its divergence to itself is nothing, so that beta has nothing to weigh.
    torch.testing.assert_close(seeded(method, x), seeded(build(MMJSD, beta=0.0).double(), x))


def test_without_the_prior_the_dynamic_prior_is_the_experts_geometric_mean() -> None:
    method, x = build(MMJSD, prior_weight=0.0).double(), exact(batch())
    experts = [e.z for e in method.experts(x).values()]
    dynamic = geometric_mean([standard_normal_like(experts[0]), *experts], method.weights)
    torch.testing.assert_close(dynamic.scale**-2, sum(e.scale**-2 for e in experts) / 3)


@pytest.mark.parametrize(
    ("prior_component", "prior_weight", "expected"), [(False, 0.5, 0.0), (True, None, 0.25), (True, 0.6, 0.6)]
)
def test_decoders_see_the_prior_only_if_it_is_a_component(
    prior_component: bool, prior_weight: float | None, expected: float
) -> None:
    method = build(MMJSD, prior_component=prior_component, prior_weight=prior_weight)
    for encoder in method.encoders.values():
        encoder.towers[0].location.weight.data.zero_()
        encoder.towers[0].location.bias.data.fill_(100.0)
    seen = []
    method.decoders["sketch"].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    seeded(method, {n: t[:1].expand(3000, *t.shape[1:]) for n, t in batch().items()})
    share = (seen[0][:, 0].abs() < 50).double().mean()
    assert abs(share - expected) <= 5 * (expected * (1 - expected) / 3000) ** 0.5


def test_several_given_modalities_make_a_mixture() -> None:
    method = build(MMJSD).eval()
    x = {n: t[:1].expand(400, *t.shape[1:]) for n, t in batch().items()}
    for i, encoder in enumerate(method.encoders.values()):
        encoder.towers[0].location.weight.data.zero_()
        encoder.towers[0].location.bias.data.fill_(100.0 * i)
    experts = {n: e.z for n, e in method.experts(x).items() if n != "sketch"}
    chosen = (method.posterior_sample(experts)[:, 0] / 100).round().long()
    counts = torch.bincount(chosen, minlength=3)
    assert counts[1] == 0 and min(counts[0], counts[2]) > 150
    torch.testing.assert_close(method.posterior_mean(experts), torch.full((400, 4), 100.0))
