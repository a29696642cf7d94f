"""Langevin dynamics against exact results on Gaussians, and the promises around it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from methods.parts.langevin import energy_and_gradient, frozen, langevin

PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]])
MEAN = torch.tensor([1.5, -0.5])


def gaussian_energy(state):
    u = state["x"] - MEAN
    return 0.5 * torch.einsum("bi,ij,bj->b", u, PRECISION, u)


def test_recovers_mean_and_covariance_of_a_gaussian():
    """The discretised chain has the exact stationary covariance A^-1 (I - hA/2)^-1 with h = s^2/2."""
    torch.manual_seed(0)
    step = 0.4
    state, _ = langevin({"x": torch.randn(20_000, 2)}, gaussian_energy, 150, step, step)
    exact = torch.linalg.inv(PRECISION @ (torch.eye(2) - 0.25 * step**2 * PRECISION))
    assert torch.allclose(state["x"].mean(0), MEAN, atol=0.03)
    assert torch.allclose(state["x"].T.cov(), exact, atol=0.05)
    assert not torch.allclose(exact, torch.linalg.inv(PRECISION), atol=0.01)


def test_smaller_noise_samples_at_the_stated_temperature():
    torch.manual_seed(0)
    step, noise = 0.3, 0.1
    state, _ = langevin({"x": torch.randn(20_000, 2)}, gaussian_energy, 250, step, noise)
    exact = torch.linalg.inv(PRECISION @ (torch.eye(2) - 0.25 * step**2 * PRECISION)) * (noise / step) ** 2
    assert torch.allclose(state["x"].T.cov(), exact, atol=0.1 * float(exact.max()))


def test_without_noise_it_is_gradient_descent():
    x = torch.tensor([[3.0, 2.0]])
    state, energies = langevin({"x": x}, gaussian_energy, 2, 0.5, 0.0)
    for _ in range(2):
        x = x - 0.125 * (x - MEAN) @ PRECISION
    assert torch.allclose(state["x"], x)
    assert energies.shape == (2, 1) and energies[1] < energies[0]


def test_blocks_move_together_and_inputs_stay_untouched():
    start = {"a": torch.ones(3, 2), "b": torch.ones(3, 1, 2)}
    state, _ = langevin(start, lambda s: (s["a"].sum(1) * s["b"].sum((1, 2))) ** 2, 4, 0.1, 0.0)
    assert torch.equal(start["a"], torch.ones(3, 2))
    assert (state["a"] < 1).all() and (state["b"] < 1).all()


@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_drift_of_every_example_is_bounded(limit):
    start = {"x": torch.tensor([[50.0, 1.0], [0.0, 0.01]]), "y": torch.zeros(2, 3)}
    state, _ = langevin(start, lambda s: s["x"].square().sum(1) * 100 + s["y"].sum(1), 1, 1.0, 0.0, limit)
    moved = sum((state[k] - start[k]).square().sum(1) for k in start).sqrt()
    assert (moved <= limit * 1.0001).all() and moved[0] > limit * 0.99


def test_state_is_float32_so_that_small_noise_survives():
    torch.manual_seed(0)
    start = {"x": torch.ones(64, 8, dtype=torch.bfloat16)}
    state, _ = langevin(start, lambda s: s["x"].sum(1) * 0, 1, 0.1, 0.001)
    assert state["x"].dtype == torch.float32
    assert 0.0005 < state["x"].std() < 0.002


def test_record_sees_every_state_and_the_last():
    seen = []
    state, energies = langevin(
        {"x": torch.zeros(2, 2)},
        gaussian_energy,
        3,
        0.3,
        0.1,
        record=lambda i, s, e, d: seen.append((i, s["x"].clone(), e)),
    )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], state["x"])
    assert torch.equal(torch.stack([e for _, _, e in seen[:-1]]), energies)


def test_works_under_no_grad_and_leaves_parameters_alone():
    net = nn.Linear(2, 1)
    with torch.no_grad(), frozen(net):
        langevin({"x": torch.zeros(4, 2)}, lambda s: net(s["x"]).squeeze(1), 3, 0.3, 0.1)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_frozen_restores_modes_and_keeps_spectral_norm_buffers():
    net = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="planted"), frozen(net):
        net(torch.randn(8, 4))
        assert not any(m.training for m in net.modules())
        raise RuntimeError("planted")
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_gradient_equals_autograd():
    x = torch.randn(5, 2, dtype=torch.float32)
    value, gradient = energy_and_gradient(gaussian_energy, {"x": x})
    assert torch.allclose(gradient["x"], (x - MEAN) @ PRECISION, atol=1e-6)
    assert not value.requires_grad
