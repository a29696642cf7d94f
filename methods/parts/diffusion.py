"""DDPM on pictures in [-1, 1]: forward process, noise regression, strided sampling (METHODS.md 2.10).

The noise schedule and its posterior steps are diffusers'; what is chosen here are the steps to visit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.spec import UserError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

NOISE_STEPS = 1000
"""T of the forward process; its variances rise linearly from 1e-4 to 0.02, as in DDPM and DiffuseVAE."""

Predictor = Callable[[Tensor, Tensor], Tensor]
"""eps(x_t `[B, ...]`, t `[B]`), the noise in x_t; or the velocity of `from_velocity`."""


def noise_schedule(clip: bool = True) -> DDPMScheduler:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, abar_t = prod_{s <= t} (1 - beta_s), t = 0..999.

    `clip` keeps the estimate of x_0 within [-1, 1] while sampling. Made anew for every use: it holds tensors
    that are no state of a method.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(NOISE_STEPS, 1e-4, 0.02, "linear", variance_type="fixed_small", clip_sample=clip)


def check_steps(steps: int) -> int:
    """The number of sampling steps if it is possible, else UserError."""
    if not 0 <= steps <= NOISE_STEPS:
        raise UserError(f"{steps} diffusion steps are impossible; give 0 (no refinement) to {NOISE_STEPS}")
    return steps


def strided(steps: int) -> list[int]:
    """`steps` of the 1000 noise levels in descending order, evenly spaced and from the last one, 999."""
    return [round(NOISE_STEPS * i / steps) - 1 for i in range(check_steps(steps), 0, -1)]


def noise_regression(predict: Predictor, x: Tensor) -> Tensor:
    """|eps - eps(x_t, t)|^2 averaged over the entries, `[B]`, for x_0 = `x` `[B, ...]`, a uniform t and a
    standard normal eps drawn for every example (Ho et al. 2020, Eqn 14)."""
    t = torch.randint(NOISE_STEPS, (len(x),), device=x.device)
    noise = torch.randn_like(x)
    noisy = noise_schedule().add_noise(x, noise, t)
    return (noise - predict(noisy, t)).square().flatten(1).mean(1)


def from_velocity(velocity: Predictor, draft: Tensor) -> Predictor:
    """eps(x_t, t) = sqrt(1 - abar_t) (x_t - sqrt(abar_t) r) + sqrt(abar_t) v(x_t, t); draft r `[B, ...]`.

    v estimates the velocity sqrt(abar_t) eps - sqrt(1 - abar_t) (x_0 - r) of the remainder (Salimans and Ho
    2022, section 4; theirs has r = 0). v = 0 is the mean of eps given x_t if x_0 ~ N(r, I), so that samples
    lie around the draft from the start, where a network that gives eps itself has first to learn to copy x_t.
    The squared error of eps is abar_t times that of v: the noisiest levels teach v little and keep to r.
    """
    # Moved to the device once, not in every step of a sampler.
    levels = noise_schedule().alphas_cumprod.to(draft.device)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        abar = levels[t].view(-1, *[1] * (x.ndim - 1))
        return (1 - abar).sqrt() * (x - abar.sqrt() * draft) + abar.sqrt() * velocity(x, t)

    return noise


def denoise(predict: Predictor, start: Tensor, steps: int, clip: bool = True) -> Tensor:
    """x_0 `[B, ...]` from `start` ~ N(0, I) by `steps` ancestral steps over the noise levels of `strided`.

    Going from level t to level s draws from q(x_s | x_t, x_0) at the estimate of x_0, the last step returns
    that estimate (Ho et al. 2020, Eqn 6, 7). One evaluation of `predict` a step; 0 steps return `start`.
    """
    schedule, x = noise_schedule(clip), start
    if not check_steps(steps):
        return x
    schedule.set_timesteps(timesteps=strided(steps))
    for t in schedule.timesteps:
        noise = predict(x, t.to(x.device).expand(len(x)))
        x = schedule.step(noise, int(t), x).prev_sample
    return x
