"""`ours` and `ours_w`: their Markov chains, what is drawn with them, and the trouble they can be in."""

from __future__ import annotations

import pytest
import torch
from test_ours import SPEC, batch, make
from torch.distributions import Normal

from methods.base import Diverged, Progress
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.chain_health import chain_trouble
from methods.parts.networks.energy import JointEnergy


def test_latent_chain_target_is_the_posterior():
    """The chain's drift is the gradient of log p(z) + sum over S of log p(x_m | z), for S = {m1}."""
    method = make(latent_noise=0.0, latent_max_drift=0.0, latent_step_size=0.1).eval()
    x = method.to_model({"m1": batch()["m1"]})
    z = torch.randn(6, 5, requires_grad=True)
    log_joint = Normal(0.0, 1.0).log_prob(z).sum(1) - (
        (x["m1"] - method.generators["m1"](z).tanh()).square().flatten(1).sum(1) / (2 * method.sigma**2)
    )
    (gradient,) = torch.autograd.grad(log_joint.sum(), z)
    revised, _ = method.revise_latent({"z": z.detach()}, x, steps=1)
    assert torch.allclose(revised["z"], z.detach() + 0.005 * gradient, atol=1e-4)


@pytest.mark.parametrize("cls", [Ours, OursW])
def test_latent_chain_climbs(cls):
    method = make(cls, latent_noise=0.0).eval()
    chain = method.chain("posterior", batch(), 6, steps=40, every=10)
    assert chain.quantity == "log_likelihood" and chain.values.shape == (41, 6)
    assert chain.values[-1].mean() > chain.values[0].mean()
    assert chain.at == [0, 10, 20, 30, 40] and len(chain.frames) == 5


def test_data_chain_reports_energy_and_starts_at_the_generator():
    method = make().eval()
    torch.manual_seed(3)
    chain = method.chain("data", None, 4)
    torch.manual_seed(3)
    drawn = method.decode(method.sample_prior(4), SPEC.names)
    assert chain.values.shape == (4, 4) and chain.at == [0, 2, 3]
    assert torch.allclose(chain.frames[0]["m1"], drawn["m1"].clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("cls", [Ours, OursW])
@pytest.mark.parametrize("sampler", ["ebm", "gen", "gen_revised"])
def test_cross_generation_from_any_subset(cls, sampler):
    method, x = make(cls).eval(), batch()
    with torch.no_grad():
        for given in (["m1"], ["m0", "m2"], list(SPEC.names)):
            out = method.cross_generate({k: x[k] for k in given}, SPEC.names, sampler)
            assert list(out) == list(SPEC.names)
            for name in SPEC.names:
                assert out[name].shape == x[name].shape
                assert not torch.equal(out[name], x[name])


def test_observed_modalities_are_held_in_the_refinement_chain(monkeypatch):
    method, x = make().eval(), batch()
    seen = []
    forward = JointEnergy.forward

    def spy(self, state):
        seen.append(state["m1"].detach().clone())
        return forward(self, state)

    monkeypatch.setattr(JointEnergy, "forward", spy)
    method.cross_generate({"m1": x["m1"]}, ["m0"], "ebm")
    assert len(seen) == 3 and all(torch.equal(s, 2 * x["m1"] - 1) for s in seen)


def test_cross_generation_draws_missing_private_latents_from_the_prior(monkeypatch):
    method, x = make(OursW).eval(), batch()
    used = {}
    generate = method.generate

    def spy(latent, targets=None):
        used.update(latent)
        return generate(latent, targets)

    monkeypatch.setattr(method, "generate", spy)
    drawn = []
    prior = method.prior_draw

    def recorded(n):
        drawn.append(prior(n))
        return drawn[-1]

    monkeypatch.setattr(method, "prior_draw", recorded)
    method.cross_generate({"m1": x["m1"]}, ["m0"], "gen")
    assert any(torch.equal(used["w.m0"], d["w.m0"]) for d in drawn)
    assert not any(torch.equal(used["w.m1"], d["w.m1"]) for d in drawn)


def test_network_evaluations():
    method = make()
    assert method.nfe("ebm", "joint") == 4 and method.nfe("ebm", "joint", 30) == 31
    assert method.nfe("gen", "joint") == 1
    assert method.nfe("gen_revised", "cross") == 5
    with pytest.raises(ValueError, match="gen_revised"):
        method.nfe("gen_revised", "joint")


@pytest.mark.parametrize(
    ("trouble", "word"),
    [
        ({"energy_gap": 2e4}, "energy gap"),
        ({"log_posterior": (-1e3, -1e6)}, "fell"),
        ({"displacement": 1.5}, "moved"),
        ({"energy_gap": float("nan")}, "finite"),
        ({"prior_mean": 134.0}, "fitted prior ran away"),
        ({"prior_mean": float("inf")}, "finite"),
    ],
)
def test_diverging_chains_are_named(trouble, word):
    healthy = {"energy_gap": -1.0, "log_posterior": (-1000.0, -900.0), "displacement": 0.01, "entries": 1000}
    assert chain_trouble(**healthy) is None
    assert word in chain_trouble(**{**healthy, **trouble})


def test_a_runaway_latent_chain_stops_training():
    method = make(output="linear", latent_step_size=5.0, latent_max_drift=0.0, latent_steps=8)
    with pytest.raises(Diverged, match="finite|fell"):
        for _ in range(3):
            method(batch(), Progress("revision", 0, 10))


@pytest.mark.parametrize("components", [1, 2])
def test_a_runaway_prior_stops_training(components):
    method = make(fit_prior=True, prior_components=components)
    method(batch(), Progress("revision", 0, 10))
    method.priors.track({"z": 100 + torch.randn(10_000, method.latent)})
    with pytest.raises(Diverged, match="fitted prior ran away.*log_variance_high"):
        method(batch(), Progress("revision", 0, 10))


def test_a_runaway_data_chain_stops_training_and_not_a_validation():
    method = make(data_step_size=0.1, data_noise=5.0)
    with pytest.raises(Diverged, match="moved|finite"):
        method(batch(), Progress("revision", 0, 10))
    assert method.eval()(batch(), Progress("revision", 0, 10)).terms["moved"] > 1
