"""The energy prior: sign of its gradient, detached critic, its chain, its schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from datasets.spec import UserError
from methods.base import Diverged, Progress
from methods.parts.energy_prior import EnergyPrior, EnergySchedule

NOW = Progress("train", 0, 100)


class Quadratic(nn.Module):
    """U(z) = c |z - centre|^2 / 2: N(0, 1) tilted by it has variance v = 1 / (1 + c) and mean v c centre."""

    def __init__(self, c: float, centre: float) -> None:
        super().__init__()
        self.c, self.centre = nn.Parameter(torch.tensor(c)), nn.Parameter(torch.tensor(centre))

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * self.c * (z - self.centre).square().sum(-1)


def prior(family: str = "gaussian", size: int = 2, steps: int = 60, step_size: float = 0.4) -> EnergyPrior:
    torch.manual_seed(0)
    return EnergyPrior(size, family, 16, steps, step_size)


def test_descent_lowers_the_energy_of_the_posterior_and_raises_it_on_negatives() -> None:
    p = prior()
    positive, negative = torch.full((64, 2), 2.0), torch.full((64, 2), -2.0)
    with torch.no_grad():
        before = p.energy(positive).mean() - p.energy(negative).mean()
    for _ in range(5):
        p.energy.zero_grad()
        p.contrast(positive, negative, NOW).backward()
        for q in p.energy.parameters():
            if q.grad is not None:
                q.data -= 0.02 * q.grad
    with torch.no_grad():
        after = p.energy(positive).mean() - p.energy(negative).mean()
        # Where the posterior lives the tilted prior is now the higher one.
        assert after < before - 0.1
        assert (p.log_prob(positive).mean() - p.log_prob(negative).mean()) > 0.1


def test_contrast_is_the_likelihood_gradient_of_a_solvable_prior() -> None:
    # p_alpha = N(c m / (1 + c), 1 / (1 + c)); at c = 1 and data at 3 the slope of log p_alpha in m is known.
    p = prior(size=1)
    p.energy = Quadratic(1.0, 0.0)
    data = torch.full((1, 1), 3.0)
    negatives = math.sqrt(0.5) * torch.randn(100_000, 1)  # exact samples of the tilted prior
    p.contrast(data, negatives, NOW).backward()
    # d/dm of -log N(3; m/2, 1/2) at m = 0 is -(3 - 0) / (1/2) * (1/2) = -3.
    assert p.energy.centre.grad.item() == pytest.approx(-3, abs=0.03)


def test_contrast_reaches_u_alone() -> None:
    p = prior()
    positive, negative = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2, requires_grad=True)
    p.contrast(positive, negative, NOW).backward()
    assert positive.grad is None and negative.grad is None
    assert all(q.grad is not None and q.grad.any() for q in p.energy.layers[:-1].parameters())


def test_critic_is_constant_inside_the_bound_but_its_slope_reaches_z() -> None:
    p = prior()
    z = torch.randn(3, 8, 2, requires_grad=True)
    p.log_prob(z).sum().backward()
    assert all(q.grad is None for q in p.energy.parameters())
    torch.testing.assert_close(p.log_prob(z), p.base.log_prob(z) - p.energy(z))
    slope = torch.autograd.grad(p.energy(z).sum(), z)[0]
    torch.testing.assert_close(z.grad, -z.detach() - slope, rtol=1e-4, atol=1e-5)


def test_chain_samples_the_tilted_prior() -> None:
    p = prior(steps=40, step_size=0.3)
    p.energy = Quadratic(3.0, 2.0)
    torch.manual_seed(1)
    z = p.sample(6000)
    # Target mean 1.5, variance 1/4. The step inflates the variance by 1 / (1 - s^2 precision / 4) = 1.10.
    assert z.mean().item() == pytest.approx(1.5, abs=0.03)
    assert z.var().item() == pytest.approx(0.25 / (1 - 0.09), rel=0.08)


@pytest.mark.parametrize(("family", "variance"), [("gaussian", 1.0), ("laplace", 2.0)])
def test_chain_without_energy_stays_at_the_base(family: str, variance: float) -> None:
    p = prior(family, steps=30, step_size=0.2)
    p.energy = Quadratic(0.0, 0.0)
    torch.manual_seed(2)
    z = p.sample(6000)
    assert z.mean().item() == pytest.approx(0, abs=0.08)
    assert z.var().item() == pytest.approx(variance, rel=0.12)


def test_chain_steps_zero_is_the_base_and_leaves_everything_as_it_was() -> None:
    p = prior()
    p.energy.train()
    torch.manual_seed(3)
    z = p.sample(5, steps=0)
    torch.manual_seed(3)
    assert torch.equal(z, p.base.rsample(5))
    with torch.no_grad():
        moved = p.sample(5)
    assert not moved.requires_grad
    assert p.energy.training and all(q.requires_grad and q.grad is None for q in p.energy.parameters())


def test_schedule() -> None:
    schedule = EnergySchedule(0.25, 1e-3, 0.5, 0.99)
    warmup, train = schedule.stages
    assert (warmup.share, train.share) == (0.25, 0.75)
    assert "energy" not in warmup.groups and "energy" in train.groups
    assert "energy" not in schedule.gradients["warmup"]
    assert schedule.warming(Progress("warmup", 0, 10)) and not schedule.warming(NOW)
    assert [s.name for s in EnergySchedule(0.0, 1e-3, 0.5, 0.99).stages] == ["train"]
    group = schedule.group(nn.Linear(1, 1))
    assert (group.lr, group.betas[0], group.decay) == (1e-3, 0.5, 0.99)


def test_a_runaway_gap_is_called_divergence() -> None:
    p = prior()
    p.energy = Quadratic(1.0, 0.0)
    with pytest.raises(Diverged, match="lower lr_energy"):
        p.contrast(torch.full((2, 2), 1e3), torch.zeros(2, 2), NOW)
    with pytest.raises(Diverged):
        p.contrast(torch.full((2, 2), math.nan), torch.zeros(2, 2), NOW)
    # A validation is no step of training, and does not end it.
    assert p.eval().contrast(torch.full((2, 2), 1e3), torch.zeros(2, 2), NOW) > 1e5


@pytest.mark.parametrize("bad", [{"steps": -1}, {"step_size": 0.0}])
def test_impossible_chains(bad: dict) -> None:
    with pytest.raises(UserError, match="prior chain"):
        prior(**bad)
    with pytest.raises(UserError, match="energy_start"):
        EnergySchedule(1.0, 1e-3, 0.5, 1.0)
