"""Divergence, geometric mean and Jensen-Shannon term of normals, in float64 against torch and identities."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from methods.parts.latents import Diagonal
from methods.parts.normals import geometric_mean, jensen_shannon, kl_divergence, standard_normal_like
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.posteriors import product, stack


@st.composite
def weighted(draw: st.DrawFn) -> tuple[list[Diagonal], list[float]]:
    """Up to five experts of one shape with weights of sum 1, one of them perhaps 0."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    locations = draw(arrays(np.float64, shape, elements=st.floats(-10, 10)))
    scales = draw(arrays(np.float64, shape, elements=st.floats(0.05, 10)))
    raw = draw(arrays(np.float64, shape[0], elements=st.floats(0, 1)))
    raw[draw(st.integers(0, shape[0] - 1))] += 1
    experts = [
        Diagonal(torch.from_numpy(m), torch.from_numpy(s)) for m, s in zip(locations, scales, strict=True)
    ]
    return experts, (raw / raw.sum()).tolist()


@settings(max_examples=60, deadline=None)
@given(weighted())
def test_kl_equals_torch(drawn: tuple[list[Diagonal], list[float]]) -> None:
    q, p = drawn[0][0], drawn[0][-1]
    expected = torch_kl(Normal(q.location, q.scale), Normal(p.location, p.scale)).sum(-1)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        kl_divergence(q, standard_normal_like(q)), kl_to_standard_normal(q), rtol=1e-9, atol=1e-9
    )
    # One against many, as MVTCAE needs it.
    every = kl_divergence(q, stack(drawn[0]))
    assert every.shape == (len(drawn[0]), len(q.location))
    torch.testing.assert_close(every[-1], expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(weighted(), st.randoms(use_true_random=False))
def test_geometric_mean_properties(drawn: tuple[list[Diagonal], list[float]], random) -> None:
    experts, weights = drawn
    g = geometric_mean(experts, weights)
    z = experts[0].location + torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None, None]
    total = sum(w * e.log_prob(z) for e, w in zip(experts, weights, strict=True))
    gap = total - g.log_prob(z)  # a constant: the logarithm of the normaliser
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-7, atol=1e-6)
    order = random.sample(range(len(experts)), len(experts))
    moved = geometric_mean([experts[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(moved.location, g.location, rtol=1e-9, atol=1e-9)
    same = geometric_mean([experts[0]] * len(experts), weights)
    torch.testing.assert_close(same.location, experts[0].location, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(same.scale, experts[0].scale, rtol=1e-9, atol=1e-9)
    equal = geometric_mean(experts, [1 / len(experts)] * len(experts))
    joint = product(experts)
    torch.testing.assert_close(equal.location, joint.location, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(equal.scale, joint.scale * len(experts) ** 0.5, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(weighted())
def test_jensen_shannon_is_a_divergence(drawn: tuple[list[Diagonal], list[float]]) -> None:
    experts, weights = drawn
    js = jensen_shannon(experts, weights)
    assert (js >= -1e-9).all()
    torch.testing.assert_close(jensen_shannon([experts[0]] * 3, [0.2, 0.5, 0.3]), torch.zeros_like(js))
    # An expert with all the weight is the mean itself, and nothing is left to diverge.
    alone = [1.0, *[0.0] * (len(experts) - 1)]
    torch.testing.assert_close(jensen_shannon(experts, alone), torch.zeros_like(js))


def test_gradients_flow_through_the_mean_into_every_expert() -> None:
    torch.manual_seed(0)
    locations = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    scales = (torch.rand(3, 2, 4, dtype=torch.float64) + 0.3).requires_grad_()

    def js(places: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        experts = [Diagonal(m, s) for m, s in zip(places, widths, strict=True)]
        return jensen_shannon(experts, [0.5, 0.3, 0.2]).sum()

    assert torch.autograd.gradcheck(js, (locations, scales))


def test_laplace_is_refused() -> None:
    q = Diagonal(torch.zeros(2, 3), torch.ones(2, 3), laplace=True)
    for call in (lambda: kl_divergence(q, q), lambda: geometric_mean([q, q], [0.5, 0.5])):
        with pytest.raises(ValueError, match="normal"):
            call()
