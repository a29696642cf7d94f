"""Products, mixtures and subsets of experts, against formulas and torch.distributions in float64."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal

from methods.parts.latents import Diagonal
from methods.parts.posteriors import (
    mixture_log_prob,
    mixture_mean,
    mixture_rsample,
    product,
    stack,
    subsets,
)


def random_experts(count: int, batch: int = 3, size: int = 4, laplace: bool = False) -> list[Diagonal]:
    return [
        Diagonal(
            torch.randn(batch, size, dtype=torch.float64),
            torch.rand(batch, size, dtype=torch.float64) + 0.1,
            laplace,
        )
        for _ in range(count)
    ]


@st.composite
def expert_lists(draw: st.DrawFn) -> list[Diagonal]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    locations = draw(arrays(np.float64, shape, elements=st.floats(-10, 10)))
    scales = draw(arrays(np.float64, shape, elements=st.floats(0.01, 10)))
    return [
        Diagonal(torch.from_numpy(m), torch.from_numpy(s)) for m, s in zip(locations, scales, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(expert_lists(), st.booleans(), st.randoms(use_true_random=False))
def test_product_properties(experts: list[Diagonal], prior: bool, random) -> None:
    q = product(experts, prior)
    precision = sum(1 / e.scale.numpy() ** 2 for e in experts) + prior
    mean = sum(e.location.numpy() / e.scale.numpy() ** 2 for e in experts) / precision
    np.testing.assert_allclose(q.scale.numpy() ** -2, precision, rtol=1e-10)
    np.testing.assert_allclose(q.location.numpy(), mean, rtol=1e-9, atol=1e-9)
    shuffled = random.sample(experts, len(experts))
    torch.testing.assert_close(product(shuffled, prior).location, q.location, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(product(shuffled, prior).scale, q.scale, rtol=1e-9, atol=1e-9)
    narrowest = torch.stack([e.scale for e in experts]).min(0).values
    assert (q.scale <= narrowest * (1 + 1e-12)).all()
    if prior:  # an explicit unit expert is the same thing
        unit = Diagonal(torch.zeros_like(q.location), torch.ones_like(q.scale))
        torch.testing.assert_close(product([*experts, unit]).location, q.location)


@settings(max_examples=60, deadline=None)
@given(expert_lists(), st.booleans(), st.randoms(use_true_random=False))
def test_mixture_properties(experts: list[Diagonal], laplace: bool, random) -> None:
    experts = [Diagonal(e.location, e.scale, laplace) for e in experts]
    z = experts[0].location + 0.3
    logs = torch.stack([e.log_prob(z) for e in experts])
    mixed = mixture_log_prob(experts, z)
    shuffled = random.sample(experts, len(experts))
    torch.testing.assert_close(mixture_log_prob(shuffled, z), mixed)
    assert (mixed <= logs.max(0).values + 1e-9).all()
    assert (mixed >= logs.max(0).values - math.log(len(experts)) - 1e-9).all()
    torch.testing.assert_close(mixture_log_prob([experts[0]] * 3, z), logs[0])


def test_product_is_the_normalised_product_of_densities() -> None:
    torch.manual_seed(1)
    experts = random_experts(3)
    q, z = product(experts, prior=True), torch.randn(50, 3, 4, dtype=torch.float64)
    total = sum(e.log_prob(z) for e in experts) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    difference = total - q.log_prob(z)
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))


def test_product_refuses_laplace() -> None:
    with pytest.raises(ValueError, match="Laplace"):
        product(random_experts(2, laplace=True))


@pytest.mark.parametrize(("laplace", "base"), [(False, Normal), (True, Laplace)])
def test_mixture_density_equals_torch(laplace: bool, base: type) -> None:
    torch.manual_seed(2)
    experts = random_experts(5, laplace=laplace)
    every = stack(experts)
    components = Independent(base(every.location.movedim(0, 1), every.scale.movedim(0, 1)), 1)
    reference = MixtureSameFamily(Categorical(torch.ones(3, 5, dtype=torch.float64)), components)
    z = 3 * torch.randn(7, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(mixture_log_prob(experts, z), reference.log_prob(z))
    torch.testing.assert_close(mixture_mean(experts), reference.mean)


def test_mixture_draws_a_component_for_every_example() -> None:
    torch.manual_seed(3)
    batch = 6000
    experts = [Diagonal(torch.full((batch, 2), 100.0 * c), torch.ones(batch, 2)) for c in range(3)]
    chosen = (mixture_rsample(experts) / 100).round()
    assert (chosen[:, 0] == chosen[:, 1]).all()  # one component for a whole latent vector
    component = chosen[:, 0].long()
    counts = torch.bincount(component, minlength=3).double()
    assert ((counts - batch / 3).abs() < 5 * math.sqrt(batch * 2 / 9)).all()
    # Not by position: within every third of the batch all three occur about equally often.
    for part in component.chunk(3):
        assert (torch.bincount(part, minlength=3) > batch / 9 - 5 * math.sqrt(batch / 3 * 2 / 9)).all()
    # Changes of neighbours are as frequent as for independent draws.
    changes = (component[1:] != component[:-1]).double().mean()
    assert abs(changes - 2 / 3) < 5 * math.sqrt(2 / 9 / batch)


def test_mixture_draws_follow_torch_and_its_seed() -> None:
    experts = random_experts(3, batch=4)
    torch.manual_seed(5)
    first = mixture_rsample(experts)
    torch.manual_seed(5)
    assert torch.equal(first, mixture_rsample(experts))
    assert not torch.equal(first, mixture_rsample(experts))


def test_subsets() -> None:
    assert subsets("ab") == [("a",), ("b",), ("a", "b")]
    for count in range(1, 6):
        found = subsets(map(str, range(count)))
        assert len(found) == len(set(found)) == 2**count - 1


def test_weighted_mixture_draws_follow_their_weights() -> None:
    torch.manual_seed(6)
    batch, weights = 6000, (0.5, 0.0, 0.3, 0.2)
    experts = [Diagonal(torch.full((batch, 2), 100.0 * c), torch.ones(batch, 2)) for c in range(4)]
    chosen = (mixture_rsample(experts, weights) / 100).round()
    assert (chosen[:, 0] == chosen[:, 1]).all()
    for part in chosen[:, 0].long().chunk(3):
        counts = torch.bincount(part, minlength=4).double() / len(part)
        for found, wanted in zip(counts.tolist(), weights, strict=True):
            assert abs(found - wanted) <= 5 * math.sqrt(wanted * (1 - wanted) / len(part))
