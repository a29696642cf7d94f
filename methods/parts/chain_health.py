"""When a Markov chain of training must be called divergent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from methods.base import Diverged

CHECK_EVERY = 25
"""Training steps between two looks at the chains (a look waits for the device)."""


FAR = {"generator": 1.0, "noise": 2.0}
"""Largest displacement of a data chain by where it starts: half the range [-1, 1] from a picture, all of it
from noise, which has to become one."""


BEYOND = 30.0
"""Mean |mean| of a fitted prior, in the units of N(0, I), that no network is made for."""


def chain_trouble(
    energy_gap: float,
    log_posterior: tuple[float, float] | None,
    displacement: float,
    entries: int,
    far: float = FAR["generator"],
    prior_mean: float = 0.0,
) -> str | None:
    """Why the chains of a training step must be called divergent, or None.

    energy_gap: mean U(data) - mean U(negatives). log_posterior: mean log p(z, x) before and after the
    latent chain, None without one. displacement: root mean square change of an entry along the data
    chain, images in [-1, 1]; `far` is too much. entries: numbers in one tuple; a fall by more than one nat
    per entry cannot be noise. prior_mean: mean |mean| of the fitted prior, which z of the data chain is drawn
    from.
    """
    before, after = log_posterior or (0.0, 0.0)
    if not all(math.isfinite(v) for v in (energy_gap, before, after, displacement, prior_mean)):
        return "a chain reached values that are not finite; lower data_step_size or latent_step_size"
    if abs(energy_gap) > 1e4:
        return f"the energy gap {energy_gap:.3g} exceeds 1e4; lower lr_energy or data_step_size"
    if after < before - 0.1 * abs(before) - entries:
        fell = f"the log-likelihood fell from {before:.4g} to {after:.4g} along the latent chain"
        return f"{fell}; lower latent_step_size"
    if displacement > far:
        share = "half the range" if far == FAR["generator"] else "the whole range"
        return f"the data chain moved entries by {displacement:.3g}, {share}; lower data_step_size"
    if prior_mean > BEYOND:
        ran = f"the fitted prior ran away with the latents, to a mean of {prior_mean:.3g}"
        return f"{ran}; lower log_variance_high, lr_inference or lr_generator"
    return None


def displacement(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> Tensor:
    """Root mean square change of an entry along a chain, every block counting the same; a scalar."""
    return torch.stack([(end[k] - start[k]).square().mean() for k in start]).mean().sqrt()


def check_chains(terms: Mapping[str, Tensor], entries: int, start: str = "generator") -> None:
    """Raise Diverged where the logged terms of a training step show trouble; `start` of the data chain."""
    value = {name: float(t.detach()) for name, t in terms.items()}
    ends = ("log_posterior_start", "log_posterior_end")
    prior_means = [v for name, v in value.items() if name.startswith("prior_mean.")]
    trouble = chain_trouble(
        value["energy_data"] - value["energy_revised"],
        (value[ends[0]], value[ends[1]]) if ends[0] in value else None,
        value["moved"],
        entries,
        FAR[start],
        max(prior_means, key=lambda v: (math.isnan(v), v), default=0.0),
    )
    if trouble:
        raise Diverged(trouble)
