"""HELVAE and its mixture of subsets: their ELBOs written out in float64 with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from vae_support import NOW, SPEC, batch, build, exact, gradients, location, seeded

from methods.helvae import HELVAE
from methods.mohelvae import MoHELVAE
from methods.parts.latents import Diagonal


def pool(experts: Sequence[Diagonal]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as METHODS.md 2.13 writes them, by precisions and plain coefficients."""
    weights, means, variances = [], [], []
    for a, b in product(experts, experts):
        p, q = a.scale**-2, b.scale**-2
        v = a.scale**2 + b.scale**2
        roots = torch.sqrt(2 * a.scale * b.scale / v)
        exponent = -((a.location - b.location) ** 2) / (4 * v)
        weights.append((roots * exponent.exp()).prod(-1))
        means.append((a.location * p + b.location * q) / (p + q))
        variances.append(2 / (p + q))
    total = sum(weights)
    mean = sum(w[..., None] * m for w, m in zip(weights, means, strict=True)) / total[..., None]
    second = sum(w[..., None] * (m**2 + v) for w, m, v in zip(weights, means, variances, strict=True))
    return mean, (second / total[..., None] - mean**2).sqrt()


def same_gradients(method: torch.nn.Module, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    wanted = gradients(method, expected)
    for name, gradient in gradients(method, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-8, msg=name)


def test_loss_and_gradients_are_those_of_the_elbo_of_the_full_set() -> None:
    method, x = build(HELVAE, beta=1.3).double(), exact(batch())
    loss = seeded(method, x)

    mean, scale = pool([e.z for e in method.experts(x).values()])
    torch.manual_seed(0)
    z = mean + scale * torch.empty(6, 4, dtype=torch.float64).normal_()
    fit = sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
    kl = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).sum(-1)
    same_gradients(method, loss, (1.3 * kl - fit).mean())


def test_the_mixture_averages_the_kl_over_all_subsets() -> None:
    method, x = build(MoHELVAE, beta=0.7).double(), exact(batch())
    loss = seeded(method, x)

    experts = [e.z for e in method.experts(x).values()]
    pooled = [pool([experts[m] for m in s]) for size in (1, 2, 3) for s in combinations(range(3), size)]
    means, scales = (torch.stack(part) for part in zip(*pooled, strict=True))
    torch.manual_seed(0)
    chosen, rows = torch.randint(7, (6,)), torch.arange(6)
    z = means[chosen, rows] + scales[chosen, rows] * torch.empty(6, 4, dtype=torch.float64).normal_()
    fit = sum(method.likelihood(m, x[m.name], location(method, m.name, z)) for m in SPEC)
    kl = kl_divergence(Normal(means, scales), Normal(0.0, 1.0)).sum(-1).mean(0)
    same_gradients(method, loss, (0.7 * kl - fit).mean())


def test_subsets_are_inferred_by_the_same_pool() -> None:
    x = batch()
    for cls in (HELVAE, MoHELVAE):
        method = build(cls).eval()
        with torch.no_grad():
            for given in (("sketch",), ("photo", "caption"), SPEC.names):
                experts = {n: method.experts({n: x[n]})[n].z for n in given}
                mean, scale = pool([Diagonal(e.location, e.scale) for e in experts.values()])
                encoded = method.encode({n: x[n] for n in given})["z"]
                torch.testing.assert_close(encoded, mean, rtol=1e-4, atol=1e-5)
                torch.manual_seed(0)
                z = torch.stack([method.posterior_sample(experts) for _ in range(3000)])
                torch.testing.assert_close(z.std(0), scale, rtol=0.1, atol=0)


def test_a_latent_of_512_dimensions_trains() -> None:
    for cls in (HELVAE, MoHELVAE):
        method = build(cls, latent=512)
        # Experts far apart, whose overlaps are nothing in float32.
        for i, encoder in enumerate(method.encoders.values()):
            encoder.towers[0].location.bias.data += 20.0 * i
        loss = method(batch(), NOW).total
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.encoders.parameters())
