"""MVEBM base: the tilted bound, the critic, the energy's own loss, warm-up and the prior chain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from vae_support import (
    NOW,
    SPEC,
    assert_same_descent,
    assert_same_energy_descent,
    batch,
    build,
    location,
    seeded,
    seeded_parts,
)

from methods.base import Progress
from methods.mmvae import MMVAE
from methods.mvebm_base import MVEBMBase

WARM = Progress("warmup", 0, 10)


def test_without_energy_it_is_mmvae() -> None:
    x = batch()
    mmvae = build(MMVAE, family="gaussian", learn_prior=False)
    mvebm = build(MVEBMBase, likelihood="laplace", likelihood_scale=0.75)
    mvebm.encoders.load_state_dict(mmvae.encoders.state_dict())
    mvebm.decoders.load_state_dict(mmvae.decoders.state_dict())
    torch.testing.assert_close(seeded(mvebm, x, progress=WARM), seeded(mmvae, x))


@pytest.mark.parametrize("samples", [1, 3])
def test_both_objectives_and_their_gradients_in_float64(samples: int) -> None:
    method = build(MVEBMBase, samples=samples, beta=1.7).double()
    x = {n: t.double() if t.is_floating_point() else t for n, t in batch().items()}
    negatives = torch.randn(6, 4).double()
    method.prior.sample = lambda n: negatives[:n]
    parts = seeded_parts(method, x)

    experts = [e.z for e in method.experts(x).values()]
    torch.manual_seed(0)
    draws = [q.rsample(samples) for q in experts]
    unit = Normal(torch.tensor(0.0).double(), 1.0)
    bound = 0.0
    for z in draws:
        densities = torch.stack([Normal(q.location, q.scale).log_prob(z).sum(-1).exp() for q in experts])
        a = unit.log_prob(z).sum(-1) - method.prior.energy(z) - densities.mean(0).log()
        a = 1.7 * a + sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    contrast = method.prior.energy(torch.stack(draws).detach()).mean() - method.prior.energy(negatives).mean()
    # U learns from the contrast alone, the networks from the bound alone, in which U is a fixed critic.
    assert_same_descent(method, parts["vae"], -bound.mean(), but="prior")
    assert_same_energy_descent(method, parts["energy"], contrast)


def test_bound_is_tilted_by_the_energy() -> None:
    method, x = build(MVEBMBase, samples=1, beta=1.7), batch()
    torch.manual_seed(0)
    plain = method(x, WARM).parts["vae"]
    torch.manual_seed(0)
    tilted = method(x, NOW).parts["vae"]
    torch.manual_seed(0)
    z = torch.stack([e.z.rsample(1) for e in method.experts(x).values()])
    torch.testing.assert_close(tilted - plain, 1.7 * method.prior.energy(z).mean(), rtol=1e-3, atol=1e-3)


def test_energy_part_contrasts_posterior_with_prior_samples() -> None:
    method, x = build(MVEBMBase), batch()
    negatives = torch.randn(6, 4)
    method.prior.sample = lambda n: negatives[:n]
    torch.manual_seed(0)
    part = method(x, NOW).parts["energy"]
    torch.manual_seed(0)
    z = torch.stack([e.z.rsample(2) for e in method.experts(x).values()])
    expected = method.prior.energy(z).mean() - method.prior.energy(negatives).mean()
    torch.testing.assert_close(part, expected)


def test_the_encoder_feels_the_slope_of_the_energy() -> None:
    """With a steep energy along the first coordinate the bound pulls the posterior down the slope."""
    method, x = build(MVEBMBase, likelihood_scale=1e3), batch()

    def slope(z: Tensor) -> Tensor:
        return method.prior.base.log_prob(z) - 50 * z[..., 0]

    method.prior.log_prob = slope
    torch.manual_seed(0)
    method(x, NOW).parts["vae"].backward()
    for encoder in method.encoders.values():
        assert encoder.towers[0].location.bias.grad[0] > 10  # descent lowers the location


def test_training_turns_the_prior_to_the_posterior() -> None:
    """A fixed posterior away from p_0: training U alone moves the prior's samples to it."""
    method, x = build(MVEBMBase, family="gaussian"), batch(32)
    for encoder in method.encoders.values():
        encoder.towers[0].location.weight.data.zero_()
        encoder.towers[0].location.bias.data.fill_(1.5)
    optimiser = torch.optim.Adam(method.prior.energy.parameters(), 3e-3, betas=(0.5, 0.999))
    before = method.sample_prior(500)["z"].mean()
    for _ in range(60):
        optimiser.zero_grad()
        method(x, NOW).parts["energy"].backward()
        optimiser.step()
    after = method.sample_prior(500)["z"].mean()
    assert abs(before) < 0.2 and after > 0.8


def test_sampling_runs_the_chain_and_conditioning_does_not() -> None:
    method, x = build(MVEBMBase, prior_steps=7).eval(), batch()
    steps = []
    original = method.prior.sample
    method.prior.sample = lambda n, s=None, record=None: steps.append(s) or original(n, s, record)
    with torch.no_grad():
        method.joint_generate(2)
        method.joint_generate(2, steps=0)
        method.cross_generate({"photo": x["photo"]}, ["sketch"], steps=3)
    assert steps == [None, 0]
    assert [method.nfe(None, "joint"), method.nfe(None, "joint", 0), method.nfe(None, "cross")] == [8, 1, 1]


@pytest.mark.parametrize("every", [2, 3])
def test_chain_keeps_frames_and_energies(every: int) -> None:
    method = build(MVEBMBase, prior_steps=7).eval()
    chain = method.chain("prior", None, 4, every=every)
    assert chain.at == ([0, 2, 4, 6, 7] if every == 2 else [0, 3, 6, 7]) and len(chain.frames) == len(
        chain.at
    )
    assert chain.values.shape == (8, 4) and chain.values.isfinite().all()
    assert chain.frames[0]["photo"].shape == (4, 3, 12, 12) and not chain.frames[0]["photo"].requires_grad
    assert not torch.equal(chain.frames[0]["photo"], chain.frames[-1]["photo"])
    torch.manual_seed(0)
    first = method.chain("prior", None, 4)
    torch.manual_seed(0)
    z = method.prior.base.rsample(4)
    total = method.prior.energy(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(first.values[0], total.detach())
    with pytest.raises(ValueError, match="posterior"):
        method.chain("posterior", None, 4)


def test_the_posterior_chain_climbs_the_likelihood_of_what_is_given() -> None:
    method, x = build(MVEBMBase, likelihood_scale=0.02).eval(), batch()
    torch.manual_seed(0)
    chain = method.chain("posterior", {"photo": x["photo"]}, 4, steps=40)
    assert (chain.kind, chain.quantity) == ("posterior", "log_likelihood") and chain.values.shape == (41, 4)
    assert chain.values[-1].mean() > chain.values[0].mean()
    assert set(chain.frames[-1]) == set(x)
