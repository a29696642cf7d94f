"""Other ways than P1 Eqn 12 to teach the experts of `ours`: the bound, and the ends of their own chains."""

from __future__ import annotations

import math

import pytest
import torch
from test_ours import REVISION, batch, make
from torch.distributions import Normal

from methods.indep_inference import IndepInference
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.cooperative_losses import log_mixture, log_own, one_expert_each
from methods.parts.latents import Diagonal, Expert


@pytest.mark.parametrize("cls", [Ours, OursW, IndepInference])
def test_the_bound_teaches_inference_alone(cls):
    """With `inference_on_bound` the encoders get b_e times the bound's gradient, the generators none."""
    alone = {"inference_on_data": 0.0, "inference_on_revised": 0.0}
    method, usual = make(cls, **alone, inference_on_bound=0.25), make(cls, **alone)
    x, elbo = batch(), method.elbo

    def seeded(images, experts):
        torch.manual_seed(7)
        return elbo(images, experts)

    method.elbo = seeded
    torch.manual_seed(3)
    loss = method(x, REVISION)
    torch.manual_seed(3)
    before = usual(x, REVISION)
    assert "infer_bound" in loss.terms and "infer_bound" not in before.terms
    assert torch.equal(loss.parts["generator"], before.parts["generator"])

    own, others = list(method.encoders.parameters()), list(method.generators.parameters())
    found = torch.autograd.grad(loss.parts["inference"], [*own, *others], allow_unused=True)
    images = method.to_model(x)
    wanted = torch.autograd.grad(-0.25 * seeded(images, method.experts(images))[0], own)
    assert all(float(w.abs().sum()) > 0 for w in wanted)
    torch.testing.assert_close(found[: len(own)], wanted, rtol=1e-4, atol=1e-6)
    assert found[len(own) :] == (None,) * len(others)
    assert all(p.requires_grad for p in others)


def test_own_ends_credit_the_expert_that_was_drawn():
    """Each example teaches its own expert alone, and the completed mixture lies below the mixture."""
    torch.manual_seed(0)
    experts = {
        m: Expert(Diagonal(torch.randn(6, 5, requires_grad=True), torch.rand(6, 5) + 0.1)) for m in "abc"
    }
    z, chosen = {"z": torch.randn(6, 5)}, one_expert_each(3, {"z": torch.zeros(6, 5)})
    assert chosen.bincount().tolist() == [2, 2, 2]
    log_q = log_own(experts, z, chosen)
    for row, m in enumerate(chosen.tolist()):
        e = list(experts.values())[m].z
        wanted = Normal(e.location[row], e.scale[row]).log_prob(z["z"][row]).sum()
        torch.testing.assert_close(log_q[row], wanted)
    assert bool((log_q - math.log(3) <= log_mixture(experts, z) + 1e-5).all())
    assert bool((log_own(experts, z) <= log_mixture(experts, z) + 1e-5).all())
    log_q.sum().backward()
    for m, e in enumerate(experts.values()):
        assert torch.equal(e.z.location.grad.abs().sum(1) > 0, chosen == m)


@pytest.mark.parametrize(
    ("cls", "settings"), [(Ours, {}), (OursW, {}), (OursW, {"private_from_prior": 0.5})], ids=str
)
def test_own_ends_start_where_the_chosen_experts_are(cls, settings):
    """The chain's start is a draw of the expert that its end will teach, in a step of training too."""
    method = make(cls, own_ends=True, log_variance_low=-20.0, log_variance_high=-18.0, **settings)
    x, seen = batch(), []
    experts = method.experts(method.to_model(x))
    start, learn = method.training_start, method.log_joint_posterior

    def started(experts, chosen):
        seen.append(chosen)
        return start(experts, chosen)

    def learned(experts, latent, unobserved=None, chosen=None):
        seen.append(chosen)
        return learn(experts, latent, unobserved, chosen)

    method.training_start, method.log_joint_posterior = started, learned
    method(x, REVISION)
    chosen, taught, negatives = seen
    assert chosen is taught and negatives is None
    latent, _ = start(experts, chosen)
    places = torch.stack([e.z.location for e in experts.values()])
    assert torch.allclose(latent["z"], places[chosen, torch.arange(6)], atol=1e-2)


def test_own_ends_log_no_shares_of_a_mixture_that_they_do_not_use():
    assert any(name.startswith("share.") for name in make()(batch(), REVISION).terms)
    assert not any(name.startswith("share.") for name in make(own_ends=True)(batch(), REVISION).terms)


@pytest.mark.parametrize("name", ["own_ends", "inference_on_bound"])
def test_what_acts_in_revision_alone_is_refused_without_it(name):
    with pytest.raises(ValueError, match=f"{name}.*warm_start"):
        make(warm_start=1.0, **{name: True})


@pytest.mark.parametrize("other", [{"latent_start": "prior"}, {"expert_mean": 0.1}], ids=str)
def test_own_ends_refuse_what_contradicts_them(other):
    with pytest.raises(ValueError, match="own_ends"):
        make(own_ends=True, **other)


@pytest.mark.parametrize(("z", "private", "w"), [(-4.0, 1.0, 1.0), (1.0, -4.0, -4.0), (-4.0, None, -4.0)])
def test_shared_and_private_latents_have_their_own_bounds(z, private, w):
    method = make(OursW, log_variance_high=z, private_log_variance_high=private)
    with torch.no_grad():
        for encoder in method.encoders.values():
            encoder.towers[0].scale.bias.fill_(20.0)  # as broad as they may be
    low = method.log_variance_low
    for e in method.experts(method.to_model(batch())).values():
        for q, high in ((e.z, z), (e.w, w)):
            # The soft clamp of what is far above `high`.
            wanted = torch.full_like(q.scale, low + math.log1p(math.exp(high - low)))
            torch.testing.assert_close(2 * q.scale.log(), wanted)


@pytest.mark.parametrize("name", ["log_variance_high", "private_log_variance_high"])
def test_log_variances_without_room_are_refused(name):
    with pytest.raises(ValueError, match=f"log_variance_low=-8.0 must lie below {name}=-9.0"):
        make(OursW, **{name: -9.0})
