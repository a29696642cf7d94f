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
from methods.parts.fitted_prior import DECAY, FIRST, JITTER, FittedNormal, FittedPriors

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


def test_moments_are_those_of_the_weighted_draws_and_of_fading_first_ones():
    torch.manual_seed(0)
    prior, draws = FittedNormal(2), [torch.randn(8, 2) * 2 + 1 for _ in range(5)]
    for z in draws:
        prior.track(z)
    prior.settle()
    weight = torch.cat([torch.full((8,), DECAY ** (4 - i)) for i in range(5)]).double()
    rows, first = torch.cat(draws).double(), FIRST * 2 * DECAY**5
    total = weight.sum() + first
    mean = (weight[:, None] * rows).sum(0) / total
    second = ((weight[:, None] * rows).T @ rows + first * torch.eye(2)) / total
    torch.testing.assert_close(prior.mean.double(), mean, atol=1e-5, rtol=1e-5)
    covariance = prior.root.double() @ prior.root.double().T - JITTER * torch.eye(2)
    torch.testing.assert_close(covariance, second - torch.outer(mean, mean), atol=1e-5, rtol=1e-5)


def test_after_many_batches_nothing_is_left_of_the_first_draws():
    """Far from N(0, I), in as many dimensions as `ours` has, with the smallest batch of a preset."""
    torch.manual_seed(0)
    prior = FittedNormal(32)
    for _ in range(800):
        prior.track(3 + 0.5 * torch.randn(16, 32))
    prior.settle()
    torch.testing.assert_close(prior.mean, torch.full((32,), 3.0), atol=0.06, rtol=0)
    spread = torch.linalg.eigvalsh(prior.root @ prior.root.T)
    assert spread.min() > 0.15 and spread.max() < 0.37, "0.25 but for the noise of 1,600 draws"


def test_bf16_changes_neither_density_nor_moments():
    torch.manual_seed(0)
    draws, z = [10 + 0.3 * torch.randn(64, 6) for _ in range(300)], 10 + 0.3 * torch.randn(5, 6)
    usual, mixed = FittedNormal(6), FittedNormal(6)
    for each in draws:
        usual.track(each)
    usual.settle()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for each in draws:
            mixed.track(each)
        mixed.settle()
        assert mixed.log_prob(z).dtype == mixed.sample(2).dtype == torch.float32
        torch.testing.assert_close(mixed.log_prob(z), usual.log_prob(z))
    torch.testing.assert_close(mixed.root, usual.root)


def test_what_is_no_covariance_leaves_the_prior_as_it_was():
    prior = FittedNormal(3)
    prior.products.copy_(-torch.eye(3))
    prior.settle()
    assert torch.equal(prior.root, torch.eye(3)) and torch.equal(prior.mean, torch.zeros(3))


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
    for step in range(40):
        method(batch(), Progress("revision", step, 40))
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
    assert float(prior.weight) == 16 + DECAY * FIRST * 2
    torch.testing.assert_close(prior.sum, torch.full((2,), 8.0).double())
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
    assert float(prior.weight) == 64 + DECAY * FIRST * 5
    assert torch.equal(prior.mean, torch.zeros(5))
    method(batch(), Progress("revision", 2, 10))
    assert not torch.equal(prior.mean, torch.zeros(5))


def test_the_warm_start_is_followed_but_used_from_the_first_revision_on():
    method = make(Ours, warm_start=0.5)
    for step in range(3):
        method(batch(), Progress("warm", step, 3))
    prior = method.priors.of("z")
    assert float(prior.weight) == pytest.approx(
        sum(2 * 64 * DECAY**i for i in range(3)) + DECAY**3 * FIRST * 5
    )
    assert torch.equal(prior.mean, torch.zeros(5))
    method(batch(), Progress("revision", 0, 3))
    assert not torch.equal(prior.mean, torch.zeros(5))


def test_the_vae_part_alone_gets_its_prior_in_its_last_step():
    method = make(Ours, warm_start=1)
    for step in range(3):
        assert torch.equal(method.priors.of("z").mean, torch.zeros(5))
        method(batch(), Progress("warm", step, 3)).total.backward()
    assert not torch.equal(method.priors.of("z").mean, torch.zeros(5))


def test_what_is_not_observed_has_the_mean_of_the_fitted_prior():
    method = make(IndepGenerators)
    method.priors.of("z.m1").mean.fill_(4.0)
    z = method.encode({"m0": batch()["m0"]})["z"]
    assert torch.equal(z[:, 5:], torch.full((64, 5), 4.0)) and not torch.equal(z[:, :5], z[:, 5:])


def test_a_chain_from_the_prior_starts_from_the_fitted_one():
    method = make(Ours, latent_start="prior")
    method.priors.of("z").mean.fill_(7.0)
    start = method.first_latents(method.experts(method.to_model(batch())))
    assert start["z"].mean() > 6


def test_a_laplace_prior_is_not_fitted():
    with pytest.raises(ValueError, match="fit_prior fits a normal prior"):
        make(Ours, prior="laplace")


def test_without_it_there_is_nothing_to_store():
    assert not FittedPriors([], 5).state_dict()
    assert not any(name.startswith("priors") for name in make(Ours, fit_prior=False).state_dict())
