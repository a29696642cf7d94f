"""Pools of normal experts, against quantiles, linear algebra and integrals on grids, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from methods.parts.latents import Diagonal
from methods.parts.pooling import barycentre, consensus, hellinger, matched, overlaps
from methods.parts.posteriors import product

Pool = Callable[[Sequence[Diagonal]], Diagonal]
POOLS: dict[str, Pool] = {
    "barycentre": barycentre,
    "consensus": lambda experts: consensus(experts, 0.6),
    "independent": lambda experts: consensus(experts, 0.0),
    "hellinger": hellinger,
}


def every() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)


def expert(means: Sequence[float], scales: Sequence[float]) -> Diagonal:
    return Diagonal(torch.tensor(means, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64))


def numbers(shape: tuple[int, ...], seed: int = 0) -> list[Diagonal]:
    """`shape[0]` experts of shape `shape[1:]`."""
    generator = np.random.default_rng(seed)
    means, scales = generator.normal(size=shape), generator.uniform(0.2, 2, size=shape)
    return [Diagonal(torch.from_numpy(m), torch.from_numpy(s)) for m, s in zip(means, scales, strict=True)]


def on_grid(density: np.ndarray, axes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the coordinates under an unnormalised density on a regular grid."""
    mass = density / density.sum()
    grids = np.meshgrid(*axes, indexing="ij")
    means = np.array([(mass * g).sum() for g in grids])
    return means, np.array(
        [math.sqrt((mass * (g - m) ** 2).sum()) for g, m in zip(grids, means, strict=True)]
    )


# -- what all pools share


@st.composite
def expert_lists(draw: st.DrawFn) -> list[Diagonal]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    means = draw(arrays(np.float64, shape, elements=st.floats(-10, 10)))
    scales = draw(arrays(np.float64, shape, elements=st.floats(0.01, 10)))
    return [Diagonal(torch.from_numpy(m), torch.from_numpy(s)) for m, s in zip(means, scales, strict=True)]


@every()
@settings(max_examples=50, deadline=None)
@given(expert_lists(), st.randoms(use_true_random=False))
def test_pools_are_symmetric_positive_and_move_with_the_experts(
    pool: Pool, experts: list[Diagonal], random
) -> None:
    q = pool(experts)
    assert (q.scale > 0).all() and q.location.isfinite().all() and q.scale.isfinite().all()
    shuffled = pool(random.sample(experts, len(experts)))
    # Weights of either sign may cancel: compare on the scale of the experts.
    near = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(shuffled.location, q.location, **near)
    torch.testing.assert_close(shuffled.scale, q.scale, **near)
    moved = pool([Diagonal(3 - 2 * e.location, 2 * e.scale) for e in experts])
    torch.testing.assert_close(moved.location, 3 - 2 * q.location, **near)
    torch.testing.assert_close(moved.scale, 2 * q.scale, **near)


@every()
def test_one_expert_is_returned_and_half_precision_is_kept(pool: Pool) -> None:
    (only,) = numbers((1, 3, 4))
    torch.testing.assert_close(pool([only]).location, only.location)
    torch.testing.assert_close(pool([only]).scale, only.scale)
    single = Diagonal(only.location.float(), only.scale.float())
    assert pool([single, single]).location.dtype == pool([single]).scale.dtype == torch.float32


@every()
def test_gradients(pool: Pool) -> None:
    experts = numbers((3, 2, 2), seed=1)
    inputs = [t.requires_grad_() for e in experts for t in (e.location, e.scale)]

    def pooled(*flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = pool([Diagonal(m, s) for m, s in zip(flat[::2], flat[1::2], strict=True)])
        return q.location, q.scale

    assert torch.autograd.gradcheck(pooled, inputs)


@every()
def test_laplace_experts_are_refused(pool: Pool) -> None:
    with pytest.raises(ValueError, match="normal experts"):
        pool([Diagonal(torch.zeros(2), torch.ones(2), laplace=True)])


# -- barycentre


def test_barycentre_averages_the_quantiles() -> None:
    """On a line the 2-Wasserstein barycentre is the distribution whose quantile function is the mean one."""
    experts = [expert([0.3], [0.5]), expert([-2.0], [1.5]), expert([1.0], [0.1])]
    levels = np.linspace(0.001, 0.999, 999)
    wanted = np.mean([norm.ppf(levels, e.location.item(), e.scale.item()) for e in experts], axis=0)
    q = barycentre(experts)
    np.testing.assert_allclose(norm.ppf(levels, q.location.item(), q.scale.item()), wanted, atol=1e-12)


def test_barycentre_has_the_least_transport_cost() -> None:
    """sum_a W_2^2 by quantiles on a grid, at the barycentre and around it."""
    experts = [expert([0.3], [0.5]), expert([-2.0], [1.5]), expert([1.0], [0.1])]
    levels = (np.arange(4000) + 0.5) / 4000
    quantiles = [norm.ppf(levels, e.location.item(), e.scale.item()) for e in experts]

    def cost(mean: float, scale: float) -> float:
        return sum(float(np.mean((norm.ppf(levels, mean, scale) - q) ** 2)) for q in quantiles)

    q = barycentre(experts)
    mean, scale = q.location.item(), q.scale.item()
    least = cost(mean, scale)
    steps = ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))
    assert all(cost(mean + a, scale + b) > least for a, b in steps)


# -- consensus


def test_consensus_with_a_negative_weight() -> None:
    """METHODS.md 2.12: scales 1 and 3 at rho = 0.6 have the weights 1.125 and -0.125."""
    q = consensus([expert([1.0], [1.0]), expert([0.0], [3.0])], 0.6)
    assert q.location.item() == pytest.approx(1.125)
    q = consensus([expert([0.0], [1.0]), expert([1.0], [3.0])], 0.6)
    assert q.location.item() == pytest.approx(-0.125)  # outside the range of the experts


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.95])
def test_consensus_is_the_posterior_under_correlated_errors(correlation: float) -> None:
    """mu = z 1 + error, error ~ N(0, C), flat p(z): p(z | mu) integrated on a grid, for every coordinate."""
    experts = [
        expert([0.5, 1.0], [0.4, 1.0]),
        expert([-0.6, -2.0], [1.5, 3.0]),
        expert([1.1, 0.2], [0.8, 2.0]),
    ]
    q = consensus(experts, correlation)
    axis = np.linspace(-30, 30, 60001)
    for d in range(2):
        scales = np.array([e.scale[d].item() for e in experts])
        means = np.array([e.location[d].item() for e in experts])
        covariance = np.outer(scales, scales) * (correlation + (1 - correlation) * np.eye(3))
        errors = means[:, None] - axis
        log_density = -0.5 * (errors * np.linalg.solve(covariance, errors)).sum(0)
        (mean,), (scale,) = on_grid(np.exp(log_density - log_density.max()), [axis])
        assert q.location[d].item() == pytest.approx(mean, abs=1e-9)
        assert q.scale[d].item() == pytest.approx(scale, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(expert_lists(), st.floats(0, 0.99))
def test_consensus_against_matrix_inversion(experts: list[Diagonal], correlation: float) -> None:
    q, n = consensus(experts, correlation), len(experts)
    scales = np.stack([e.scale.numpy() for e in experts], -1)
    means = np.stack([e.location.numpy() for e in experts], -1)
    covariance = scales[..., None] * scales[..., None, :] * (correlation + (1 - correlation) * np.eye(n))
    weights = np.linalg.solve(covariance, np.ones(means.shape)[..., None])[..., 0]
    np.testing.assert_allclose(q.scale.numpy() ** -2, weights.sum(-1), rtol=1e-6)
    expected = (weights * means).sum(-1) / weights.sum(-1)
    np.testing.assert_allclose(q.location.numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(expert_lists())
def test_uncorrelated_consensus_is_the_product_of_experts(experts: list[Diagonal]) -> None:
    q, expected = consensus(experts, 0.0), product(experts)
    torch.testing.assert_close(q.location, expected.location, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.scale, expected.scale, rtol=1e-9, atol=1e-9)


def test_correlation_costs_precision_where_experts_are_equal() -> None:
    same = [expert([0.7], [0.5])] * 4
    scales = [consensus(same, rho).scale.item() for rho in (0.0, 0.5, 0.9, 0.999999)]
    assert scales[0] == pytest.approx(0.25)
    assert scales == sorted(scales) and scales[-1] == pytest.approx(0.5, rel=1e-5)
    assert consensus(same, 0.5).location.item() == pytest.approx(0.7)


# -- Hellinger


@pytest.mark.parametrize("count", [2, 3])
def test_hellinger_matches_the_pool_on_a_grid(count: int) -> None:
    """Moments of (sum_a sqrt q_a)^2 in two dimensions, whose coefficients couple the coordinates."""
    places, scales = [[0.4, -0.5], [-1.0, 0.8], [1.5, 0.1]], [[0.6, 1.0], [1.2, 0.4], [0.9, 0.7]]
    experts = [expert(m, s) for m, s in zip(places[:count], scales, strict=False)]
    axes = [np.linspace(-9, 9, 1201)] * 2
    points = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1))
    density = sum((0.5 * e.log_prob(points)).exp() for e in experts).square().numpy()
    means, sds = on_grid(density, axes)
    q = hellinger(experts)
    np.testing.assert_allclose(q.location.numpy(), means, atol=1e-9)
    np.testing.assert_allclose(q.scale.numpy(), sds, rtol=1e-9)


def reference(experts: Sequence[Diagonal], points: int = 4001) -> tuple[np.ndarray, np.ndarray]:
    """Moments in many dimensions: sqrt(q_i q_j) factorises, so each pair needs one grid a coordinate.

    In logarithms throughout; nothing of the closed forms is used.
    """
    logs, firsts, seconds = [], [], []
    for a in experts:
        for b in experts:
            width = torch.maximum(a.scale, b.scale).numpy()
            low = torch.minimum(a.location, b.location).numpy() - 12 * width
            high = torch.maximum(a.location, b.location).numpy() + 12 * width
            axis = np.linspace(low, high, points)  # [points, D]
            log_root = 0.5 * (
                norm.logpdf(axis, a.location.numpy(), a.scale.numpy())
                + norm.logpdf(axis, b.location.numpy(), b.scale.numpy())
            )
            top = log_root.max(0)
            mass = np.exp(log_root - top)
            step = axis[1] - axis[0]
            logs.append((np.log(mass.sum(0) * step) + top).sum())
            firsts.append((mass * axis).sum(0) / mass.sum(0))
            seconds.append((mass * (axis - firsts[-1]) ** 2).sum(0) / mass.sum(0))
    weights = np.exp(np.array(logs) - max(logs))
    weights = (weights / weights.sum())[:, None]
    mean = (weights * np.stack(firsts)).sum(0)
    return mean, np.sqrt((weights * ((np.stack(firsts) - mean) ** 2 + np.stack(seconds))).sum(0))


@pytest.mark.parametrize("apart", [0.05, 0.5, 10.0], ids=["near", "middling", "far"])
def test_hellinger_moments_in_512_dimensions(apart: float) -> None:
    generator = np.random.default_rng(5)
    centre = generator.normal(size=512)
    experts = [
        Diagonal(
            torch.from_numpy(centre + apart * generator.normal(size=512)),
            torch.from_numpy(0.8 * np.exp(0.02 * generator.normal(size=512))),
        )
        for _ in range(3)
    ]
    log_b = overlaps(experts).log_weight[1].item() - math.log(2)
    assert {0.05: -2 < log_b < -0.01, 0.5: -200 < log_b < -5, 10.0: log_b < -1000}[apart]
    q, (mean, scale) = hellinger(experts), reference(experts)
    np.testing.assert_allclose(q.location.numpy(), mean, atol=1e-9)
    np.testing.assert_allclose(q.scale.numpy(), scale, rtol=1e-9)
    # Float32 experts: the same to float32, although exp(log B) has long left its range.
    rough = hellinger([Diagonal(e.location.float(), e.scale.float()) for e in experts])
    torch.testing.assert_close(rough.location, q.location.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rough.scale, q.scale.float(), rtol=1e-3, atol=1e-4)


def test_gradients_are_finite_where_the_overlaps_underflow() -> None:
    torch.manual_seed(0)
    places = [(30 * torch.randn(4, 512)).requires_grad_() for _ in range(3)]
    q = hellinger([Diagonal(m, torch.full_like(m, 0.01)) for m in places])
    (q.location.sum() + q.scale.log().sum()).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in places)


def test_hellinger_variance_survives_a_distant_origin() -> None:
    """As a difference of second moments the variance would be lost (METHODS.md trap 27)."""
    near = [expert([0.0, 0.3], [1e-3, 2e-3]), expert([1e-3, 0.3], [2e-3, 1e-3])]
    far = [Diagonal(e.location + 1e6, e.scale) for e in near]
    torch.testing.assert_close(hellinger(far).scale, hellinger(near).scale, rtol=1e-4, atol=0)


@pytest.mark.parametrize("count", [2, 5])
def test_equal_experts_give_the_expert(count: int) -> None:
    (only,) = numbers((1, 3, 512), seed=2)
    for pool in (hellinger, barycentre):
        q = pool([only] * count)
        torch.testing.assert_close(q.location, only.location, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(q.scale, only.scale, rtol=1e-12, atol=1e-12)


def test_experts_that_do_not_overlap_give_their_mixtures_moments() -> None:
    experts = [expert([-50.0], [1.0]), expert([50.0], [2.0])]
    q = hellinger(experts)
    assert q.location.item() == pytest.approx(0)
    assert q.scale.item() == pytest.approx(math.sqrt(2500 + 0.5 * (1 + 4)))


def test_overlaps_of_a_subset_are_those_of_its_members() -> None:
    experts = numbers((4, 3, 5), seed=3)
    shared = overlaps(experts)
    for members in ((0,), (1, 3), (0, 2, 3), (0, 1, 2, 3)):
        q, expected = matched(shared.among(members), torch.float64), hellinger([experts[m] for m in members])
        torch.testing.assert_close(q.location, expected.location)
        torch.testing.assert_close(q.scale, expected.scale)
