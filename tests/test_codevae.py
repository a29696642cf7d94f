"""CoDE-VAE: its objective written out in float64 with gradients, the weights, and decoding some subsets."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence
from vae_support import NOW, SPEC, batch, build, exact, gradients, location, seeded

from methods.codevae import CoDEVAE
from methods.parts.latents import Diagonal
from methods.parts.posteriors import product

SUBSETS = [s for size in (1, 2, 3) for s in combinations(range(3), size)]


def agreed(experts: list[Diagonal], rho: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by inverting the covariance matrix of every coordinate."""
    scales = torch.stack([e.scale for e in experts], -1)
    means = torch.stack([e.location for e in experts], -1)
    n = len(experts)
    correlations = rho * torch.ones(n, n).to(means) + (1 - rho) * torch.eye(n).to(means)
    weights = torch.linalg.inv(scales.unsqueeze(-1) * scales.unsqueeze(-2) * correlations).sum(-1)
    return (weights * means).sum(-1) / weights.sum(-1), weights.sum(-1).rsqrt()


def test_loss_and_gradients_are_those_of_the_objective() -> None:
    method, x = build(CoDEVAE, beta=1.3, correlation=0.4, entropy=7.0).double(), exact(batch())
    method.logits.data.normal_()
    loss = seeded(method, x)

    experts = [e.z for e in method.experts(x).values()]
    torch.manual_seed(0)
    noise = torch.empty(7, 6, 4, dtype=torch.float64).normal_()
    pi = Categorical(logits=method.logits)
    objective = 7.0 * pi.entropy()
    for s, weight, eps in zip(SUBSETS, pi.probs, noise, strict=True):
        mean, scale = agreed([experts[m] for m in s], 0.4)
        z = mean + scale * eps
        fit = sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
        kl = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).sum(-1)
        objective = objective + weight * (fit - 1.3 * kl).mean()

    torch.testing.assert_close(loss, -objective)
    wanted = gradients(method, -objective)
    for name, gradient in gradients(method, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-8, msg=name)
    assert wanted["logits"].abs().min() > 0


def test_without_correlation_the_posterior_is_the_product_of_experts() -> None:
    method, x = build(CoDEVAE, correlation=0.0).double(), exact(batch())
    for given in (("photo",), ("photo", "caption"), SPEC.names):
        experts = [method.experts({n: x[n]})[n].z for n in given]
        encoded = method.encode({n: x[n] for n in given})["z"]
        torch.testing.assert_close(encoded, product(experts).location)


def test_conditional_samples_follow_the_consensus_of_what_is_given() -> None:
    method, x = build(CoDEVAE, correlation=0.5).eval(), batch()
    with torch.no_grad():
        experts = {n: e.z for n, e in method.experts({n: x[n] for n in ("photo", "caption")}).items()}
        mean, scale = agreed(list(experts.values()), 0.5)
        torch.manual_seed(0)
        z = torch.stack([method.posterior_sample(experts) for _ in range(3000)])
    torch.testing.assert_close(z.mean(0), mean, atol=0.12, rtol=0)
    torch.testing.assert_close(z.std(0), scale, rtol=0.1, atol=0)


def test_the_weights_settle_where_entropy_and_bounds_balance() -> None:
    """The best pi for fixed bounds L_S is softmax(L_S / entropy): nearly uniform at the published 1000."""
    method, x = build(CoDEVAE, entropy=2.0), batch()
    with torch.no_grad():
        torch.manual_seed(0)
        experts = [e.z for e in method.experts(x).values()]
        bounds = []
        for s, eps in zip(SUBSETS, torch.randn(7, 6, 4), strict=True):
            mean, scale = agreed([experts[m] for m in s], method.correlation)
            fit = sum(
                method.likelihood(m, x[m.name], location(method, m.name, mean + scale * eps)) for m in SPEC
            )
            kl = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).sum(-1)
            bounds.append((fit - method.beta * kl).mean())
    method.logits.data = torch.stack(bounds) / method.entropy
    pi = method.logits.softmax(0)
    assert pi.max() > 2 * pi.min()  # not the uniform start
    gradient = gradients(method, seeded(method, x))["logits"]
    torch.testing.assert_close(gradient, torch.zeros(7), atol=1e-2, rtol=0)
    assert method(x, NOW).terms["entropy"] < math.log(7)


@pytest.mark.parametrize("decoded", [1, 3])
def test_decoding_some_subsets_keeps_the_expectation(decoded: int) -> None:
    """With encoders of no spread nothing but the choice of subsets is random; its mean is the full loss."""
    full = build(CoDEVAE).double()
    full.logits.data.normal_()
    part = build(CoDEVAE, decoded=decoded).double()
    part.load_state_dict(full.state_dict())
    for method in (full, part):
        for encoder in method.encoders.values():
            encoder.towers[0].scale.weight.data.zero_()
            encoder.towers[0].scale.bias.data.fill_(-20.0)
    x = exact(batch(3))
    with torch.no_grad():
        wanted = seeded(full, x)
        drawn = torch.stack([seeded(part, x, seed) for seed in range(400)])
    assert drawn.std() > 1e-3 * drawn.mean().abs()
    assert abs(drawn.mean() - wanted) < 4.5 * drawn.std() / 20


def test_subsets_are_drawn_without_replacement_and_equally_often() -> None:
    method = build(CoDEVAE)
    assert torch.equal(method.draw_subsets(5), torch.arange(7)[:, None].expand(7, 5))
    some = build(CoDEVAE, decoded=6).draw_subsets(1000)
    assert some.shape == (6, 1000)
    assert all(len(set(column.tolist())) == 6 for column in some.T)
    counts = torch.bincount(some.flatten(), minlength=7).double()
    assert ((counts - 6000 / 7).abs() < 5 * math.sqrt(1000 * 6 / 49)).all()


def test_encoders_and_decoders_run_once_per_modality() -> None:
    method, calls = build(CoDEVAE), Counter()
    for kind in ("encoders", "decoders"):
        for name, network in getattr(method, kind).items():
            network.register_forward_hook(lambda *_, key=(kind, name): calls.update([key]))
    method(batch(), NOW)
    assert set(calls.values()) == {1} and len(calls) == 6


def test_the_weights_of_the_subsets_are_trained_but_not_needed_to_sample() -> None:
    method, x = build(CoDEVAE).eval(), batch()
    assert any(p is method.logits for p in method.param_groups()["inference"].params)
    with torch.no_grad():
        before = seeded(method, x)
        torch.manual_seed(1)
        samples = method.cross_generate({"photo": x["photo"]}, ["sketch"])["sketch"]
        method.logits.data = torch.arange(7.0)
        torch.manual_seed(1)
        assert torch.equal(samples, method.cross_generate({"photo": x["photo"]}, ["sketch"])["sketch"])
        assert not torch.equal(before, seeded(method, x))
