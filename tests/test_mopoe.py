"""MoPoE: subsets, the place of the prior expert, its ELBO, and its relation to MMVAE."""

from __future__ import annotations

from collections import Counter

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from vae_support import NOW, SPEC, assert_same_descent, batch, build, location, seeded

from methods.mopoe import MoPoE
from methods.parts.latents import Diagonal
from methods.parts.posteriors import mixture_log_prob, mixture_rsample


def test_prior_expert_enters_the_full_set_only() -> None:
    method, x = build(MoPoE), batch()
    experts = {n: e.z for n, e in method.experts(x).items()}
    assert len(method.subsets) == 7
    for subset in method.subsets:
        q = method.pooled({n: experts[n] for n in subset})
        precision = sum(experts[n].scale ** -2 for n in subset) + (len(subset) == 3)
        torch.testing.assert_close(q.scale**-2, precision, rtol=1e-4, atol=1e-4)
        mean = sum(experts[n].location * experts[n].scale ** -2 for n in subset) / precision
        torch.testing.assert_close(q.location, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.encode(x)["z"], method.pooled(experts).location)


def test_loss_is_the_papers_elbo() -> None:
    method, x = build(MoPoE, beta=1.3).double(), batch()
    x = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
    loss = seeded(method, x)
    experts = {n: e.z for n, e in method.experts(x).items()}
    products = []
    for subset in method.subsets:
        # Products of densities, N(0, I) among them where all modalities are given.
        weights = [experts[n].scale ** -2 for n in subset]
        precision = sum(weights) + (len(subset) == 3)
        mean = sum(w * experts[n].location for w, n in zip(weights, subset, strict=True)) / precision
        products.append(Diagonal(mean, precision**-0.5))
    torch.manual_seed(0)
    z = mixture_rsample(products)
    kl = sum(kl_divergence(Normal(q.location, q.scale), Normal(0.0, 1.0)).sum(-1) for q in products) / 7
    likelihood = sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
    assert_same_descent(method, loss, (1.3 * kl - likelihood).mean())


def test_averaged_kl_bounds_that_of_the_mixture() -> None:
    method, x = build(MoPoE).double(), batch()
    x = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
    experts = {n: e.z for n, e in method.experts(x).items()}
    products = [method.pooled({n: experts[n] for n in s}) for s in method.subsets]
    z = torch.stack([mixture_rsample(products) for _ in range(4000)])
    mixture = (mixture_log_prob(products, z) - Normal(0.0, 1.0).log_prob(z).sum(-1)).mean(0)
    kl = sum(kl_divergence(Normal(q.location, q.scale), Normal(0.0, 1.0)).sum(-1) for q in products) / 7
    assert (mixture < kl + 0.1).all()


def test_with_singletons_the_posterior_is_mmvaes_mixture() -> None:
    method, x = build(MoPoE), batch()
    method.subsets = [(name,) for name in SPEC.names]
    experts = {n: e.z for n, e in method.experts(x).items()}
    components = [method.pooled({n: experts[n] for n in s}) for s in method.subsets]
    places = torch.stack([e.location for e in experts.values()], 1)
    scales = torch.stack([e.scale for e in experts.values()], 1)
    mmvae = MixtureSameFamily(Categorical(torch.ones(6, 3)), Independent(Normal(places, scales), 1))
    z = torch.randn(50, 6, 4)
    torch.testing.assert_close(mixture_log_prob(components, z), mmvae.log_prob(z), rtol=1e-4, atol=1e-4)
    terms = method(x, NOW).terms
    expected = sum(
        kl_divergence(Normal(e.location, e.scale), Normal(0.0, 1.0)).sum() for e in experts.values()
    )
    torch.testing.assert_close(terms["kl"], (expected / 18).detach(), rtol=1e-4, atol=1e-4)


def test_encoders_run_once_per_modality() -> None:
    method, calls = build(MoPoE), Counter()
    for name, encoder in method.encoders.items():
        encoder.register_forward_hook(lambda *_, name=name: calls.update([name]))
    method(batch(), NOW)
    assert calls == {"photo": 1, "sketch": 1, "caption": 1}


def test_conditional_samples_use_the_product_of_what_is_given() -> None:
    method, x = build(MoPoE).eval(), batch()
    experts = {n: e.z for n, e in method.experts({n: x[n] for n in ("photo", "caption")}).items()}
    q = method.pooled(experts)
    torch.manual_seed(0)
    z = torch.stack([method.posterior_sample(experts) for _ in range(3000)]).detach()
    torch.testing.assert_close(z.mean(0), q.location.detach(), atol=0.12, rtol=0)
    torch.testing.assert_close(z.std(0), q.scale.detach(), rtol=0.1, atol=0)
