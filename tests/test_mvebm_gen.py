"""MVEBM generalised: MMVAE+ without the energy, the tilt on z alone, the prior chain with fixed w."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace, Normal
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
from methods.mmvaeplus import MMVAEPlus
from methods.mvebm_gen import MVEBMGen
from methods.parts.latents import SCALE_FLOOR

WARM = Progress("warmup", 0, 10)


def test_without_energy_it_is_mmvaeplus() -> None:
    x = batch()
    plus = build(MMVAEPlus)
    mvebm = build(MVEBMGen, likelihood="laplace", likelihood_scale=0.75)
    for part in ("encoders", "decoders"):
        getattr(mvebm, part).load_state_dict(getattr(plus, part).state_dict())
    torch.testing.assert_close(seeded(mvebm, x, progress=WARM), seeded(plus, x))


@pytest.mark.parametrize("samples", [1, 3])
def test_both_objectives_and_their_gradients_in_float64(samples: int) -> None:
    method = build(MVEBMGen, samples=samples, beta=1.7).double()
    x = {n: t.double() if t.is_floating_point() else t for n, t in batch().items()}
    for auxiliary in method.auxiliaries.values():
        auxiliary.raw.data.normal_()
    negatives = torch.randn(6, 4).double()
    method.prior.sample = lambda n: negatives[:n]
    parts = seeded_parts(method, x)

    experts = method.experts(x)
    kind, unit_scale = (Laplace, 1 + SCALE_FLOOR) if method.family == "laplace" else (Normal, 1.0)
    torch.manual_seed(0)
    z = {n: e.z.rsample(samples) for n, e in experts.items()}
    w = {n: e.w.rsample(samples) for n, e in experts.items()}
    fill = {n: r.rsample(3, samples, 6) for n, r in method.auxiliaries.items()}
    unit, bound = kind(torch.tensor(0.0).double(), unit_scale), 0.0
    for i, m in enumerate(SPEC.names):
        densities = [kind(e.z.location, e.z.scale).log_prob(z[m]).sum(-1).exp() for e in experts.values()]
        own = experts[m].w
        a = unit.log_prob(z[m]).sum(-1) - method.prior.energy(z[m]) + unit.log_prob(w[m]).sum(-1)
        a = a - torch.stack(densities).mean(0).log() - kind(own.location, own.scale).log_prob(w[m]).sum(-1)
        a = 1.7 * a
        for n in SPEC:
            out = location(method, n.name, torch.cat([w[m] if n.name == m else fill[n.name][i], z[m]], -1))
            a = a + method.likelihood(n, x[n.name], out)
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    inferred = torch.stack(list(z.values())).detach()
    contrast = method.prior.energy(inferred).mean() - method.prior.energy(negatives).mean()
    assert_same_descent(method, parts["vae"], -bound.mean(), but="prior")
    assert_same_energy_descent(method, parts["energy"], contrast)


def test_bound_is_tilted_on_the_shared_latent_only() -> None:
    method, x = build(MVEBMGen, samples=1, beta=1.7), batch()
    torch.manual_seed(0)
    plain = method(x, WARM).parts["vae"]
    torch.manual_seed(0)
    loss = method(x, NOW)
    torch.manual_seed(0)
    z = torch.stack([e.z.rsample(1) for e in method.experts(x).values()])
    torch.testing.assert_close(
        loss.parts["vae"] - plain, 1.7 * method.prior.energy(z).mean(), rtol=1e-3, atol=1e-3
    )
    assert method.prior.energy.layers[0].in_features == 4


def test_private_latents_keep_their_simple_prior() -> None:
    method = build(MVEBMGen, prior_steps=3)
    torch.manual_seed(0)
    w = method.draw_private(20_000)
    assert w.shape == (20_000, 3)
    torch.testing.assert_close(w.abs().mean(), torch.tensor(1.0), rtol=0.03, atol=0)  # Laplace(0, 1)
    latent = method.sample_prior(4)
    assert len({latent[f"w.{n}"].sum().item() for n in SPEC.names}) == 3


def test_chain_moves_z_under_fixed_private_latents() -> None:
    method = build(MVEBMGen, prior_steps=4).eval()
    seen = []
    method.decode = lambda latent, targets: seen.append({k: v.clone() for k, v in latent.items()}) or {}
    chain = method.chain("prior", None, 3, every=1)
    assert chain.at == [0, 1, 2, 3, 4] and chain.quantity == "energy"
    assert torch.equal(seen[0]["w.photo"], seen[-1]["w.photo"])
    assert not torch.equal(seen[0]["z"], seen[-1]["z"])
    assert method.nfe(None, "joint") == 5 and method.nfe(None, "cross") == 1
