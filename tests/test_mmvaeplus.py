"""MMVAE+: its bound written out term by term, and which private latent is used when."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace
from vae_support import NOW, SPEC, assert_same_descent, batch, build, location, seeded

from methods.mmvaeplus import MMVAEPlus
from methods.parts.latents import SCALE_FLOOR


@pytest.mark.parametrize("samples", [1, 3])
def test_loss_is_the_papers_bound(samples: int) -> None:
    method, x = build(MMVAEPlus, samples=samples, beta=1.7).double(), batch()
    x = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
    for auxiliary in method.auxiliaries.values():
        auxiliary.raw.data.normal_()
    loss = seeded(method, x)

    experts = method.experts(x)
    torch.manual_seed(0)
    z = {n: e.z.rsample(samples) for n, e in experts.items()}
    w = {n: e.w.rsample(samples) for n, e in experts.items()}
    fill = {n: r.rsample(3, samples, 6) for n, r in method.auxiliaries.items()}
    unit, bound = Laplace(torch.tensor(0.0).double(), 1 + SCALE_FLOOR), 0.0
    for i, m in enumerate(SPEC.names):
        posterior = torch.stack(
            [Laplace(e.z.location, e.z.scale).log_prob(z[m]).sum(-1) for e in experts.values()]
        )
        own = experts[m].w
        a = unit.log_prob(z[m]).sum(-1) + unit.log_prob(w[m]).sum(-1)
        a = a - posterior.exp().mean(0).log() - Laplace(own.location, own.scale).log_prob(w[m]).sum(-1)
        a = 1.7 * a
        for n in SPEC:
            out = location(method, n.name, torch.cat([w[m] if n.name == m else fill[n.name][i], z[m]], -1))
            a = a + method.likelihood(n, x[n.name], out)
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    assert_same_descent(method, loss, -bound.mean(), but="prior")


def test_estimators_differ_as_documented() -> None:
    x, gradients = batch(), {}
    for estimator in ("iwae", "dreg", "dreg_compat"):
        method = build(MMVAEPlus, estimator=estimator, samples=4)
        seeded(method, x).backward()
        gradients[estimator] = {n: p.grad for n, p in method.named_parameters()}

    def same(name: str, one: str, other: str) -> bool:
        value = gradients[one][name]
        return torch.allclose(value, gradients[other][name], rtol=1e-3, atol=1e-4 * float(value.abs().max()))

    for name in gradients["iwae"]:
        for one, other in (("iwae", "dreg"), ("iwae", "dreg_compat"), ("dreg", "dreg_compat")):
            assert same(name, one, other) != name.startswith("encoders"), (name, one, other)


def test_at_one_sample_the_released_dreg_is_the_plain_estimator() -> None:
    x, gradients = batch(), []
    for estimator in ("iwae", "dreg_compat"):
        method = build(MMVAEPlus, estimator=estimator, samples=1)
        seeded(method, x).backward()
        gradients.append([p.grad for p in method.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_missing_private_latents_come_from_the_prior_and_given_ones_are_inferred() -> None:
    method, x = build(MMVAEPlus).eval(), batch()
    drawn = []

    def spy(n: int) -> torch.Tensor:
        drawn.append(method.private_prior.rsample(n))
        return drawn[-1]

    method.draw_private = spy
    given = {"photo": x["photo"]}
    with torch.no_grad():
        method.cross_generate(given, ["photo"])
        assert not drawn  # self-reconstruction needs no prior draw
        method.cross_generate(given, ["photo", "sketch", "caption"])
        assert len(drawn) == 2 and not torch.equal(drawn[0], drawn[1])  # one per missing modality
        assert len(drawn[0].unique()) == drawn[0].numel()  # and per example
        latent = method.sample_prior(4)
    assert len({latent[f"w.{n}"].sum().item() for n in SPEC.names}) == 3


def test_auxiliary_distributions_serve_training_alone() -> None:
    method, x = build(MMVAEPlus).eval(), batch()
    with torch.no_grad():
        before = seeded(method, x)
        torch.manual_seed(1)
        samples = method.cross_generate({"photo": x["photo"]}, ["sketch"])["sketch"]
        for auxiliary in method.auxiliaries.values():
            auxiliary.raw.data = torch.tensor([5.0, -5.0, 0.0])
        torch.manual_seed(1)
        again = method.cross_generate({"photo": x["photo"]}, ["sketch"])["sketch"]
        assert torch.equal(samples, again)
        assert not torch.equal(before, seeded(method, x))


def test_encode_names_the_private_means() -> None:
    method, x = build(MMVAEPlus).eval(), batch()
    experts = method.experts(x)
    latent = method.encode({"sketch": x["sketch"]})
    torch.testing.assert_close(latent["w.sketch"], experts["sketch"].w.location)
    torch.testing.assert_close(latent["z"], experts["sketch"].z.location)
    means = torch.stack([e.z.location for e in experts.values()])
    torch.testing.assert_close(method.encode(x)["z"], means.mean(0))
    assert method(x, NOW).terms.keys() >= {"bound", "kl", "kl_private"}
