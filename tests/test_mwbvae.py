"""MWBVAE: its ELBO written out in float64 with gradients, and the barycentre behind every subset."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from vae_support import NOW, SPEC, batch, build, exact, gradients, location, seeded

from datasets.spec import DataSpec
from methods.mwbvae import MWBVAE


def test_loss_and_gradients_are_those_of_the_elbo() -> None:
    method, x = build(MWBVAE, beta=1.3).double(), exact(batch())
    loss = seeded(method, x)

    experts = list(method.experts(x).values())
    members = [s for size in (1, 2, 3) for s in combinations(range(3), size)]
    means = torch.stack([sum(experts[m].z.location for m in s) / len(s) for s in members])
    scales = torch.stack([sum(experts[m].z.scale for m in s) / len(s) for s in members])
    torch.manual_seed(0)
    chosen = torch.randint(7, (6,))
    noise = torch.empty(6, 4, dtype=torch.float64).normal_()
    z = means[chosen, torch.arange(6)] + scales[chosen, torch.arange(6)] * noise
    fit = sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
    kl = kl_divergence(Normal(means, scales), Normal(0.0, 1.0)).sum(-1).mean(0)
    expected = (1.3 * kl - fit).mean()

    torch.testing.assert_close(loss, expected)
    wanted = gradients(method, expected)
    for name, gradient in gradients(method, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_subset_is_inferred_by_its_barycentre_without_a_prior_expert() -> None:
    method, x = build(MWBVAE).eval(), batch()
    with torch.no_grad():
        for given in (("photo",), ("photo", "caption"), SPEC.names):
            experts = [method.experts({n: x[n]})[n].z for n in given]
            mean = torch.stack([e.location for e in experts]).mean(0)
            scale = torch.stack([e.scale for e in experts]).mean(0)
            torch.testing.assert_close(method.encode({n: x[n] for n in given})["z"], mean)
            torch.manual_seed(0)
            named = dict(zip(given, experts, strict=True))
            z = torch.stack([method.posterior_sample(named) for _ in range(3000)])
            torch.testing.assert_close(z.mean(0), mean, atol=0.12, rtol=0)
            torch.testing.assert_close(z.std(0), scale, rtol=0.1, atol=0)


def test_with_one_modality_it_is_a_plain_vae() -> None:
    torch.manual_seed(0)
    method = MWBVAE(DataSpec((SPEC["sketch"],)), latent=4, width=8, beta=2.0).double()
    x = {"sketch": batch()["sketch"].double()}
    loss = seeded(method, x)
    (expert,) = method.experts(x).values()
    torch.manual_seed(0)
    torch.randint(1, (6,))
    z = expert.z.rsample()
    fit = method.likelihood(SPEC["sketch"], x["sketch"], location(method, "sketch", z))
    kl = kl_divergence(Normal(expert.z.location, expert.z.scale), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(loss, (2 * kl - fit).mean())


def test_every_subset_counts_alike() -> None:
    method, x = build(MWBVAE), batch()
    assert sorted(map(len, method.subsets)) == [1, 1, 1, 2, 2, 2, 3]
    experts = [e.z for e in method.experts(x).values()]
    pooled = [
        Normal(
            torch.stack([experts[m].location for m in s]).mean(0),
            torch.stack([experts[m].scale for m in s]).mean(0),
        )
        for size in (1, 2, 3)
        for s in combinations(range(3), size)
    ]
    kl = sum(kl_divergence(q, Normal(0.0, 1.0)).sum(-1).mean() for q in pooled) / 7
    assert method(x, NOW).terms["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
