"""Diffusion against closed forms: forward marginals, visited steps, a Gaussian solved exactly; the U-Net."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datasets.spec import UserError
from methods.parts.diffusion import denoise, from_velocity, noise_regression, noise_schedule, strided
from methods.parts.networks.unet import RefinerUNet

BETA = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETA)
MEAN, SD = 0.3, 0.4


def exact_noise(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, SD^2)."""
    abar = torch.tensor(ABAR, dtype=x.dtype)[t].view(-1, *[1] * (x.dim() - 1))
    return (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * SD**2 + 1 - abar)


@pytest.mark.parametrize("t", [0, 1, 10, 250, 999])
def test_forward_marginals(t: int) -> None:
    """sqrt(abar) and sqrt(1 - abar), also as what t + 1 single steps of the chain amount to."""
    schedule, when = noise_schedule(), torch.tensor([t])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    slope, spread = (float(schedule.add_noise(a, b, when)) for a, b in ((one, zero), (zero, one)))
    assert slope == pytest.approx(math.sqrt(ABAR[t]), rel=1e-5)
    assert spread == pytest.approx(math.sqrt(1 - ABAR[t]), rel=1e-4)
    mean, variance = 1.0, 0.0
    for beta in BETA[: t + 1]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    assert (slope, spread) == pytest.approx((mean, math.sqrt(variance)), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 1000))
def test_strides_start_at_the_last_level_and_are_even(steps: int) -> None:
    levels = strided(steps)
    assert len(levels) == steps and levels[0] == 999
    gaps = -np.diff([*levels, -1])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_strides_by_hand() -> None:
    assert strided(1000) == list(range(999, -1, -1))
    assert strided(250) == list(range(999, -1, -4))
    assert strided(25) == list(range(999, -1, -40))
    assert strided(3) == [999, 666, 332] and strided(1) == [999] and strided(0) == []
    for steps in (-1, 1001):
        with pytest.raises(UserError, match="diffusion steps"):
            strided(steps)


@pytest.mark.parametrize("steps", [0, 1, 3, 25])
def test_sampler_visits_the_strided_levels_once_each(steps: int) -> None:
    seen = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (4,)
        seen.append(t[0].item())
        return torch.zeros_like(x)

    start = torch.randn(4, 1, 2, 2)
    out = denoise(predict, start, steps)
    assert seen == strided(steps)
    assert torch.equal(out, start) == (steps == 0)


@pytest.mark.parametrize(("steps", "near"), [(7, 0.5), (25, 0.25), (250, 0.04), (1000, 0.01)])
def test_sampler_recovers_a_gaussian(steps: int, near: float) -> None:
    """With the exact noise predictor every step is linear, so mean and variance after it are known."""
    mean, variance = 0.0, 1.0
    levels = [*strided(steps), -1]
    for t, s in zip(levels, levels[1:], strict=False):
        a, b = ABAR[t], ABAR[s] if s >= 0 else 1.0
        alpha = a / b
        # x_0 estimated as k x_t + c, then the mean and the variance of q(x_s | x_t, x_0).
        k = math.sqrt(a) * SD**2 / (a * SD**2 + 1 - a)
        c = MEAN * (1 - a) / (a * SD**2 + 1 - a)
        on_x0, on_xt = math.sqrt(b) * (1 - alpha) / (1 - a), math.sqrt(alpha) * (1 - b) / (1 - a)
        mean = on_x0 * (k * mean + c) + on_xt * mean
        variance = (on_x0 * k + on_xt) ** 2 * variance + (1 - b) / (1 - a) * (1 - alpha)
    torch.manual_seed(0)
    x = denoise(exact_noise, torch.randn(20_000, 1), steps, clip=False)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(math.sqrt(variance), rel=0.02)
    # The more steps, the nearer to the data itself; few steps give too little variance.
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(SD, rel=near)


def test_estimates_are_kept_within_the_range_of_pictures() -> None:
    out = denoise(lambda x, t: torch.full_like(x, -3.0), torch.randn(50, 3, 2, 2), 5)
    assert float(out.max()) == pytest.approx(1.0) and out.min() >= -1


def test_regression_is_the_squared_error_on_the_noise() -> None:
    x = torch.randn(5, 2, 3, 3).double()
    weight = torch.tensor(0.7).double().requires_grad_()
    torch.manual_seed(4)
    loss = noise_regression(lambda noisy, t: weight * noisy + t.view(-1, 1, 1, 1) / 1000, x)
    torch.manual_seed(4)
    t, eps = torch.randint(1000, (5,)), torch.randn_like(x)
    abar = torch.tensor(ABAR)[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * eps
    error = eps - weight * noisy - t.view(-1, 1, 1, 1) / 1000
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    slope = torch.autograd.grad(loss.sum(), weight)[0]
    torch.testing.assert_close(slope, (-2 * error * noisy).mean((1, 2, 3)).sum(), rtol=1e-4, atol=1e-4)


def test_regression_meets_its_floor_at_the_exact_predictor() -> None:
    """The error left is the posterior variance of the noise, averaged over levels."""
    torch.manual_seed(0)
    x = MEAN + SD * torch.randn(4_000, 16)
    floor = (ABAR * SD**2 / (ABAR * SD**2 + 1 - ABAR)).mean()
    exact = noise_regression(exact_noise, x).mean()
    assert float(exact) == pytest.approx(floor, rel=0.05)
    off = noise_regression(lambda x, t: exact_noise(x, t) + 0.2, x).mean()
    assert float(off) == pytest.approx(floor + 0.04, rel=0.1)


def test_the_velocity_of_the_remainder_gives_back_the_noise() -> None:
    torch.manual_seed(1)
    x, draft, eps = torch.randn(3, 5, 2, 3, 3).double()
    t = torch.tensor([0, 10, 100, 400, 999])
    abar = torch.tensor(ABAR)[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * eps
    velocity = abar.sqrt() * eps - (1 - abar).sqrt() * (x - draft)
    torch.testing.assert_close(from_velocity(lambda *_: velocity, draft)(noisy, t), eps, rtol=1e-3, atol=1e-4)


def test_no_velocity_is_the_best_guess_of_a_unit_normal_around_the_draft() -> None:
    """E[eps | x_t] for x_0 ~ N(r, 1) has the closed form of `exact_noise` with that mean and variance."""
    draft, x = torch.full((6, 4), 0.3).double(), torch.randn(6, 4).double()
    t = torch.tensor([0, 5, 50, 300, 700, 999])
    abar = torch.tensor(ABAR)[t].unsqueeze(1)
    best = (1 - abar).sqrt() * (x - abar.sqrt() * draft) / (abar + 1 - abar)
    noise = from_velocity(lambda x, t: torch.zeros_like(x), draft)(x, t)
    torch.testing.assert_close(noise, best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 25])
def test_no_velocity_samples_around_the_draft(steps: int) -> None:
    torch.manual_seed(0)
    draft = torch.linspace(-0.5, 0.5, 5).expand(4_000, 5)
    predict = from_velocity(lambda x, t: torch.zeros_like(x), draft)
    out = denoise(predict, torch.randn(4_000, 5), steps, clip=False)
    torch.testing.assert_close(out.mean(0), draft[0], rtol=0, atol=0.06)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 12, 16), (3, 9, 10)])
def test_network_keeps_the_size_and_hears_everything(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = RefinerUNet(shape, 3, 8, 1, 0.0).eval()
    x, r = torch.randn(2, 2, *shape)
    t, kind = torch.tensor([5, 900]), torch.tensor([0, 2])
    with torch.no_grad():
        out = net(x, t, r, kind)
        assert out.shape == x.shape
        others = [net(-x, t, r, kind), net(x, t + 50, r, kind), net(x, t, -r, kind), net(x, t, r, 2 - kind)]
    for other in others:
        assert all((other[i] - out[i]).abs().max() > 1e-4 for i in range(2))
    net(x, t, r, kind).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_network_of_the_paper_has_14_million_parameters() -> None:
    with torch.device("meta"):
        net = RefinerUNet((3, 28, 28), 5, 80, 2, 0.3)
        large = RefinerUNet((3, 64, 64), 1, 128, 2, 0.1)
    assert 13.5e6 < sum(p.numel() for p in net.parameters()) < 14.5e6
    blocks = [type(b).__name__ for b in net.net.down_blocks]
    assert blocks == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]  # 16 of 32 pixels
    assert len(large.net.down_blocks) == 5 and type(large.net.down_blocks[2]).__name__ == "AttnDownBlock2D"
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.3 for m in net.modules()) > 0


@pytest.mark.parametrize("bad", [(6, 2, 0.1), (0, 2, 0.1), (8, 0, 0.1), (8, 1, 1.0)])
def test_an_impossible_network_is_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(UserError, match="diffusion_width"):
        RefinerUNet((3, 28, 28), 5, *bad)
