"""The fitted prior: moments, density, and that it follows the posterior of `ours` and its relatives."""

from __future__ import annotations

import pytest
import torch
from cooperative_support import SMALL
from torch.distributions import MultivariateNormal

from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.indep_generators import IndepGenerators
from methods.indep_inference import IndepInference
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.fitted_prior import DECAY, PSEUDO_ROWS, FittedNormal, FittedPriors

SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(2)))


def batch(n: int = 64, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(n, *m.shape, generator=generator) for m in SPEC}


def make(cls, **settings):
    torch.manual_seed(0)
    extra = {"private": 2} if cls is OursW else {}
    return cls(SPEC, **{**SMALL, **extra, "fit_prior": True, **settings})


def fitted(size: int = 3) -> FittedNormal:
    torch.manual_seed(0)
    prior, mix = FittedNormal(size), torch.randn(size, size)
    for _ in range(200):
        prior.track(torch.randn(64, size) @ mix.T + torch.arange(size))
    prior.settle()
    return prior


def test_it_is_standard_before_anything_is_fitted():
    prior, z = FittedNormal(3), torch.randn(5, 3)
    torch.testing.assert_close(
        prior.log_prob(z), MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(z)
    )
    torch.manual_seed(4)
    drawn = prior.sample(6)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.randn(6, 3))


def test_moments_are_those_of_the_weighted_draws_and_the_pseudo_rows():
    torch.manual_seed(0)
    prior, draws = FittedNormal(2), [torch.randn(8, 2) * 2 + 1 for _ in range(5)]
    for z in draws:
        prior.track(z)
    prior.settle()
    weight = torch.cat([torch.full((8,), DECAY ** (4 - i)) for i in range(5)]).double()
    rows, pseudo = torch.cat(draws).double(), PSEUDO_ROWS * 2
    total = weight.sum() + pseudo
    mean = (weight[:, None] * rows).sum(0) / total
    second = ((weight[:, None] * rows).T @ rows + pseudo * torch.eye(2)) / total
    torch.testing.assert_close(prior.mean.double(), mean, atol=1e-5, rtol=1e-5)
    covariance = prior.root.double() @ prior.root.double().T
    torch.testing.assert_close(covariance, second - torch.outer(mean, mean), atol=1e-5, rtol=1e-5)


def test_the_fit_maximises_the_likelihood_of_the_draws():
    """Any other mean or scale gives draws of the same posterior a lower mean log-density."""
    prior = fitted()
    torch.manual_seed(0)
    mix = torch.randn(3, 3)
    z = torch.randn(50_000, 3) @ mix.T + torch.arange(3)
    best = prior.log_prob(z).mean()
    for shift, stretch in ((0.5, 1.0), (-0.5, 1.0), (0.0, 1.3), (0.0, 0.7)):
        other = MultivariateNormal(prior.mean + shift, scale_tril=prior.root * stretch)
        assert other.log_prob(z).mean() < best


def test_density_and_draws_are_those_of_torchs_normal():
    prior, z = fitted(), torch.randn(7, 3)
    reference = MultivariateNormal(prior.mean, scale_tril=prior.root)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z), atol=1e-4, rtol=1e-4)
    drawn = prior.sample(200_000)
    torch.testing.assert_close(drawn.mean(0), prior.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), prior.root @ prior.root.T, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("cls", [Ours, OursW, IndepGenerators, IndepInference])
def test_the_prior_goes_where_the_posterior_is(cls):
    method = make(cls)
    with torch.no_grad():
        for encoder in method.encoders.values():
            encoder.towers[0].location.bias.add_(3.0)
    for step in range(3):
        method(batch(), Progress("revision", step, 10))
    method.priors.settle()
    blocks = [block for block in method.prior_draw(4) if block.startswith("z")]
    for block in blocks:
        draws = method.prior_sample(block, 2000, method.latent)
        assert (draws.mean(0) > 1.5).all(), block
    if cls is OursW:
        assert method.prior_draw(2000)["w.m0"].mean(0).abs().max() < 0.2, "private priors stay standard"


def test_the_prior_of_the_chain_is_the_fitted_one():
    method = make(Ours)
    for _ in range(50):
        method.priors.track({"z": torch.randn(64, 5) + 2})
    method.priors.settle()
    z = torch.randn(6, 5)
    prior = method.priors.of("z")
    reference = MultivariateNormal(prior.mean, scale_tril=prior.root)
    torch.testing.assert_close(method.log_prior({"z": z}), reference.log_prob(z), atol=1e-4, rtol=1e-4)


def test_separate_latents_pool_their_draws_where_they_share_a_prior():
    priors = FittedPriors(["z"], 2)
    priors.track({"z.m0": torch.ones(8, 2), "z.m1": torch.zeros(8, 2), "w.m0": torch.full((8, 2), 9.0)})
    prior = priors.of("z")
    assert float(prior.rows) == 16
    torch.testing.assert_close(prior.sum, torch.full((2,), 8.0))
    assert priors.of("z.m1") is prior and priors.of("w.m0") is None


def test_nothing_is_fitted_outside_training():
    method = make(Ours).eval()
    state = {k: t.clone() for k, t in method.priors.state_dict().items()}
    method(batch(), Progress("revision", 1, 10))
    assert all(torch.equal(t, state[k]) for k, t in method.priors.state_dict().items())


def test_the_prior_moves_before_the_next_step_not_within_one():
    method = make(Ours)
    method(batch(), Progress("revision", 1, 10)).total.backward()
    prior = method.priors.of("z")
    assert float(prior.rows) == 64
    assert torch.equal(prior.mean, torch.zeros(5))
    method(batch(), Progress("revision", 2, 10))
    assert not torch.equal(prior.mean, torch.zeros(5))


def test_without_it_there_is_nothing_to_store():
    assert not FittedPriors([], 5).state_dict()
    assert not any(name.startswith("priors") for name in make(Ours, fit_prior=False).state_dict())
