"""MMVAE: its bound against torch.distributions, its estimators, its conditional sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal
from vae_support import NOW, SPEC, assert_same_descent, batch, build, location, seeded

from methods.mmvae import MMVAE
from methods.parts.latents import SCALE_FLOOR


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", ["laplace", "gaussian", "normal"])
def test_loss_is_the_papers_bound(samples: int, family: str) -> None:
    method, x = build(MMVAE, samples=samples, family=family, beta=0.7, text_weight=2.0).double(), batch()
    x = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
    loss = seeded(method, x)

    base = Laplace if family == "laplace" else Normal
    # Learned scales start at 1, with the floor of all scales; their own gradient is MultiVae's to test.
    scale = {"laplace": 1 + SCALE_FLOOR, "gaussian": 1.0, "normal": math.log(2) + SCALE_FLOOR}[family]
    experts = [e.z for e in method.experts(x).values()]
    torch.manual_seed(0)
    draws = [q.rsample(samples) for q in experts]
    places = torch.stack([q.location for q in experts], 1)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(6, 3)),
        Independent(base(places, torch.stack([q.scale for q in experts], 1)), 1),
    )
    bound = 0.0
    for z in draws:
        a = 0.7 * (base(0.0, scale).log_prob(z).sum(-1) - mixture.log_prob(z))
        for m in SPEC:
            out = location(method, m.name, z)
            if m.kind == "text":
                a = a + 2.0 * Categorical(logits=out).log_prob(x[m.name]).sum(-1)
            else:
                a = a + Laplace(out, 0.75).log_prob(x[m.name]).sum((-1, -2, -3))
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    assert_same_descent(method, loss, -bound.mean(), but="prior")


def test_the_logged_bound_does_not_depend_on_the_estimator() -> None:
    x = batch()
    logs = {}
    for estimator in ("iwae", "dreg"):
        torch.manual_seed(0)
        method = build(MMVAE, estimator=estimator, samples=4)
        torch.manual_seed(0)
        logs[estimator] = method(x, NOW).terms["bound"]
    torch.testing.assert_close(logs["dreg"], logs["iwae"])


def test_dreg_and_iwae_train_decoders_and_prior_alike_but_encoders_not() -> None:
    x = batch()
    gradients = {}
    for estimator in ("iwae", "dreg"):
        method = build(MMVAE, estimator=estimator, samples=4)
        seeded(method, x).backward()
        gradients[estimator] = {n: p.grad for n, p in method.named_parameters()}
    for name, value in gradients["iwae"].items():
        same = torch.allclose(value, gradients["dreg"][name], rtol=1e-3, atol=1e-4 * float(value.abs().max()))
        assert same != name.startswith("encoders"), name


def test_dreg_follows_the_path_alone_and_weighs_it_twice() -> None:
    """The encoder gradient written out: sum_k omega^2 da/dz dz/dphi with constant densities."""
    method, x = build(MMVAE, estimator="dreg", samples=3), batch()
    seeded(method, x).backward()
    bias = method.encoders["photo"].towers[0].scale.bias
    got = bias.grad.clone()

    experts = [e.z for e in method.experts(x).values()]
    torch.manual_seed(0)
    z = torch.stack([q.rsample(3) for q in experts])
    leaf = z.detach().requires_grad_()
    a = sum(method.log_likelihoods(x, leaf).values()) + method.prior.log_prob(leaf)
    places, scales = (torch.stack([getattr(q, n).detach() for q in experts]) for n in ("location", "scale"))
    densities = Laplace(places[:, None, None], scales[:, None, None]).log_prob(leaf).sum(-1)
    a = a - densities.logsumexp(0) + math.log(3)
    omega = a.detach().softmax(1)
    slope = torch.autograd.grad(a.sum(), leaf)[0] * omega.square().unsqueeze(-1)
    expected = torch.autograd.grad(-(slope * z).sum() / (3 * 6), bias)[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_several_given_modalities_use_every_expert_across_the_batch() -> None:
    method = build(MMVAE, family="gaussian").eval()
    x = {n: t[:1].expand(400, *t.shape[1:]) for n, t in batch().items()}
    for i, encoder in enumerate(method.encoders.values()):
        encoder.towers[0].location.weight.data.zero_()
        encoder.towers[0].location.bias.data.fill_(100.0 * i)
        encoder.towers[0].scale.weight.data.zero_()
        encoder.towers[0].scale.bias.data.fill_(-10.0)
    experts = {n: e.z for n, e in method.experts(x).items() if n != "sketch"}
    chosen = (method.posterior_sample(experts)[:, 0] / 100).round().long()
    counts = torch.bincount(chosen, minlength=3)
    assert counts[1] == 0 and min(counts[0], counts[2]) > 150
    torch.testing.assert_close(method.posterior_mean(experts), torch.full((400, 4), 100.0))


def test_prior_scale_is_learned_only_when_asked() -> None:
    learned, fixed = build(MMVAE), build(MMVAE, learn_prior=False)
    assert learned.param_groups()["prior"].params == [learned.prior.raw]
    assert "prior" not in fixed.param_groups() and "prior.raw" in fixed.state_dict()
    seeded(learned, batch()).backward()
    assert learned.prior.raw.grad.any()
