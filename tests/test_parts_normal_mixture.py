"""Mixtures of normals: what EM finds, and samples."""

from __future__ import annotations

import warnings

import torch

from methods.parts.normal_mixture import find_components, sample_mixture


def drawn(z: torch.Tensor, components: int, n: int) -> torch.Tensor:
    shares, means, roots, _ = (t.float() for t in find_components(z, components, seed=0))
    return sample_mixture(shares, means, roots, n)


def test_one_component_has_the_moments_of_the_encodings():
    z = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 2.0, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 4.0]]
    ) + torch.tensor([5.0, -1.0, 0.0])
    shares, means, roots, _ = (t.float() for t in find_components(z, 1, seed=0))
    assert torch.allclose(means[0], z.mean(0), atol=1e-4)
    covariance = roots[0] @ roots[0].T
    assert torch.allclose(covariance, torch.cov(z.T, correction=0), rtol=1e-3, atol=1e-3)
    torch.manual_seed(1)
    drawn = sample_mixture(shares, means, roots, 200_000)
    assert torch.allclose(drawn.mean(0), z.mean(0), atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), covariance, rtol=0.03, atol=0.05)


def test_a_mixture_keeps_clusters_apart_where_one_normal_fills_the_gap():
    g = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (2000, 1), generator=g) * 20.0 - 10
    z = torch.randn(2000, 2, generator=g) + side
    torch.manual_seed(0)
    near = [((drawn(z, k, 2000) / 10).abs() - 1).abs().amax(1) < 0.5 for k in (1, 10)]
    assert near[0].float().mean() < 0.7 and near[1].float().mean() > 0.99


def test_latents_that_do_not_vary_are_no_trouble():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for components in (1, 10):
            found = drawn(torch.full((50, 4), 2.0), components, 10)
            assert torch.allclose(found, torch.full((10, 4), 2.0), atol=0.02)


def test_shares_are_those_of_the_draws_that_belong():
    g = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(600, 2, generator=g) - 9, torch.randn(200, 2, generator=g) + 9])
    found = find_components(z, 2, seed=0)
    torch.testing.assert_close(found.belongs.mean(0), found.shares)
    torch.testing.assert_close(found.shares.sort().values, torch.tensor([0.25, 0.75]).double())


def test_bf16_does_not_reach_the_samples():
    shares, means, roots = torch.ones(1), torch.full((1, 3), 100.0), 0.01 * torch.eye(3).unsqueeze(0)
    torch.manual_seed(0)
    usual = sample_mixture(shares, means, roots, 5)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sample_mixture(shares, means, roots, 5), usual)
