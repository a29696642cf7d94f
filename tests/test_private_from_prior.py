"""`ours_w` with private latents drawn from the prior: z alone explains those pictures (METHODS 2.15)."""

from __future__ import annotations

import pytest
import torch
from cooperative_support import SMALL
from torch.distributions import Normal

from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.ours_w import OursW

SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(3)))
ROWS = 40


def make(share: float, **settings) -> OursW:
    torch.manual_seed(0)
    return OursW(SPEC, **{**SMALL, "private": 2, "private_from_prior": share, **settings})


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m.name: torch.rand(ROWS, *m.shape, generator=generator) for m in SPEC}


def test_every_example_keeps_the_private_latent_of_one_modality():
    method = make(1.0)
    _, unobserved = method.training_start(method.experts(method.to_model(batch())))
    observed = ~torch.stack([unobserved[f"w.{name}"] for name in SPEC.names])
    assert torch.equal(observed.sum(0), torch.ones(ROWS, dtype=torch.long))
    assert (observed.sum(1) > 0).all()


def test_a_share_of_none_starts_as_without_the_setting():
    method = make(0.0)
    experts = method.experts(method.to_model(batch()))
    torch.manual_seed(5)
    start, unobserved = method.training_start(experts)
    torch.manual_seed(5)
    assert not unobserved
    assert all(torch.equal(start[block], z) for block, z in method.first_latents(experts).items())


def test_nothing_private_is_refused():
    with pytest.raises(ValueError, match="private=0 leaves nothing private"):
        make(0.0, private=0)


def test_the_kept_latent_is_that_of_the_expert_that_gave_z():
    method = make(1.0)
    experts = method.experts(method.to_model(batch()))
    # Experts of no width, each at a place of its own, betray which of them a draw came from.
    fixed = {
        name: e.map(lambda q, i=i: type(q)(torch.full_like(q.location, 100.0 * (i + 1)), q.scale * 0))
        for i, (name, e) in enumerate(experts.items())
    }
    start, unobserved = method.training_start(fixed)
    for i, name in enumerate(SPEC.names):
        assert torch.equal(start["z"][:, 0] == 100.0 * (i + 1), ~unobserved[f"w.{name}"])
        assert (start[f"w.{name}"][~unobserved[f"w.{name}"]] == 100.0 * (i + 1)).all()
        assert start[f"w.{name}"][unobserved[f"w.{name}"]].abs().max() < 10


def test_unobserved_latents_follow_their_prior_alone_and_the_others_the_picture():
    method = make(1.0, latent_noise=0.0, latent_step_size=0.3, latent_max_drift=0.0)
    x = method.to_model(batch())
    start, unobserved = method.training_start(method.experts(x))
    end, _ = method.revise_latent(start, x, unobserved=unobserved)
    shrunk = (1 - 0.3**2 / 2) ** method.latent_steps
    for name in SPEC.names:
        rows, block = unobserved[f"w.{name}"], f"w.{name}"
        assert torch.allclose(end[block][rows], shrunk * start[block][rows], atol=1e-6)
        assert not torch.allclose(end[block][~rows], shrunk * start[block][~rows], atol=1e-4)


def test_the_inference_loss_leaves_unobserved_latents_out():
    method = make(1.0)
    experts = method.experts(method.to_model(batch()))
    latent, unobserved = method.training_start(experts)
    gap = method.log_joint_posterior(experts, latent) - method.log_joint_posterior(
        experts, latent, unobserved
    )
    expected = torch.zeros(ROWS)
    for name, e in experts.items():
        log_q = Normal(e.w.location, e.w.scale).log_prob(latent[f"w.{name}"]).sum(1)
        expected += torch.where(unobserved[f"w.{name}"], log_q, 0.0)
    assert torch.allclose(gap, expected, atol=1e-4)


def test_it_trains_every_network():
    method = make(0.5)
    method(batch(), Progress("revision", 1, 10)).total.backward()
    for group in method.param_groups().values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in group.params)


def test_a_share_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match="private_from_prior=1.5 is no share"):
        make(1.5)
