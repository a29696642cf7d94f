"""CMVAE: its bound written out in float64, MMVAE+ as its one-cluster case, pruning for clustering alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily
from vae_support import NOW, SPEC, batch, build, location, seeded

from methods.cmvae import CMVAE
from methods.mmvaeplus import MMVAEPlus


@pytest.mark.parametrize("samples", [1, 3])
def test_loss_and_gradients_are_those_of_the_papers_bound(samples: int) -> None:
    method = build(CMVAE, samples=samples, beta=1.7, clusters=5).double()
    x = {n: t.double() if t.is_floating_point() else t for n, t in batch().items()}
    method.prior.logits.data.normal_()
    for auxiliary in method.auxiliaries.values():
        auxiliary.raw.data.normal_()
    loss = seeded(method, x)

    experts = method.experts(x)
    torch.manual_seed(0)
    z = {n: e.z.rsample(samples) for n, e in experts.items()}
    w = {n: e.w.rsample(samples) for n, e in experts.items()}
    fill = {n: r.rsample(3, samples, 6) for n, r in method.auxiliaries.items()}
    one = torch.tensor(1.0 + 1e-6, dtype=torch.float64)  # the floor of a scale
    prior = MixtureSameFamily(
        Categorical(logits=method.prior.logits), Independent(Laplace(method.prior.centres, one), 1)
    )
    unit, bound = Laplace(torch.tensor(0.0).double(), one), 0.0
    for i, m in enumerate(SPEC.names):
        posterior = torch.stack(
            [Laplace(e.z.location, e.z.scale).log_prob(z[m]).sum(-1) for e in experts.values()]
        )
        own = experts[m].w
        a = prior.log_prob(z[m]) + unit.log_prob(w[m]).sum(-1)
        a = a - posterior.exp().mean(0).log() - Laplace(own.location, own.scale).log_prob(w[m]).sum(-1)
        a = 1.7 * a
        for n in SPEC:
            out = location(method, n.name, torch.cat([w[m] if n.name == m else fill[n.name][i], z[m]], -1))
            a = a + method.likelihood(n, x[n.name], out)
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    torch.testing.assert_close(loss, -bound.mean(), rtol=1e-10, atol=1e-8)

    members = dict(method.named_parameters())
    ours = torch.autograd.grad(loss, list(members.values()))
    theirs = torch.autograd.grad(-bound.mean(), list(members.values()))
    for name, a, b in zip(members, ours, theirs, strict=True):
        limit = 1e-10 * float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=1e-7, atol=limit, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["laplace", "normal", "gaussian"])
@pytest.mark.parametrize("estimator", ["iwae", "dreg", "dreg_compat"])
def test_with_one_cluster_fixed_at_zero_it_is_mmvaeplus(family: str, estimator: str) -> None:
    x, hyper = batch(), {"family": family, "estimator": estimator, "samples": 3, "beta": 1.7}
    plus, cmvae = build(MMVAEPlus, **hyper), build(CMVAE, seed=1, clusters=1, spread=0.0, **hyper)
    cmvae.prior.requires_grad_(False)
    for part in ("encoders", "decoders", "auxiliaries"):
        getattr(cmvae, part).load_state_dict(getattr(plus, part).state_dict())
    losses = [seeded(method, x) for method in (plus, cmvae)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    wanted = {n: p.grad for n, p in plus.named_parameters()}
    found = {n: p.grad for n, p in cmvae.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        limit = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=limit)


def test_centres_and_weights_move_to_the_posterior() -> None:
    method, x = build(CMVAE, clusters=3, samples=1), batch(32)
    for encoder in method.encoders.values():
        tower = encoder.towers[0]
        tower.location.weight.data.zero_()
        tower.location.bias.data.fill_(2.0)
    method.prior.centres.data = torch.tensor([[1.0], [-9.0], [9.0]]).expand(3, 4).clone()
    optimiser = torch.optim.Adam(method.prior.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        method(x, NOW).total.backward()
        optimiser.step()
    assert method.prior.logits.softmax(0)[0] > 0.9
    assert (method.prior.centres[0] - 2).abs().max() < 0.4


def test_all_clusters_are_sampled_from_whatever_pruning_says() -> None:
    """Two far clusters, data in one of them: pruned for the assignment, present in every other use."""
    method, x = build(CMVAE, clusters=2, samples=1).eval(), batch()
    method.prior.centres.data = torch.tensor([[0.0], [50.0]]).expand(2, 4).clone()
    before = {n: t.clone() for n, t in method.state_dict().items()}
    loss = seeded(method, x)
    with torch.no_grad():
        kept = method.prior.kept(method.unimodal_means(x).flatten(0, 1), method.beta)
        assert kept.tolist() == [True, False]
        assert method.assign(x, x).tolist() == [0] * 6
        torch.manual_seed(0)
        z = method.sample_prior(200)["z"]
    assert 60 < (z.mean(1) > 25).sum() < 140
    assert torch.equal(seeded(method, x), loss)
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())


def test_assignment_is_the_vote_of_the_experts_means() -> None:
    method, x = build(CMVAE, clusters=3).eval(), batch(30)
    with torch.no_grad():
        kept = method.prior.kept(method.unimodal_means(x).flatten(0, 1), method.beta)
        given = {n: x[n] for n in ("photo", "caption")}
        for observed in (x, given):
            means = torch.stack([e.z.location for e in method.experts(observed).values()])
            assert torch.equal(method.assign(observed, x), method.prior.vote(means, kept))
    assert method.assign(x, x).dtype == torch.int64


def test_the_prior_is_an_overhead_group_of_its_own() -> None:
    method = build(CMVAE, clusters=7)
    assert sum(p.numel() for p in method.param_groups()["prior"].params) == 7 * 4 + 7
