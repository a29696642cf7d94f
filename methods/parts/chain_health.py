"""When a Markov chain of training must be called divergent."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from methods.base import Diverged

CHECK_EVERY = 25
"""Training steps between two looks at the chains (a look waits for the device)."""


def chain_trouble(
    energy_gap: float, log_posterior: tuple[float, float], displacement: float, entries: int
) -> str | None:
    """Why the chains of a training step must be called divergent, or None.

    energy_gap: mean U(data) - mean U(negatives). log_posterior: mean log p(z, x) before and after the
    latent chain. displacement: root mean square change of an entry along the data chain, images in
    [-1, 1]. entries: numbers in one tuple; a fall by more than one nat per entry cannot be noise.
    """
    before, after = log_posterior
    if not all(math.isfinite(v) for v in (energy_gap, before, after, displacement)):
        return "a chain reached values that are not finite; lower data_step_size or latent_step_size"
    if abs(energy_gap) > 1e4:
        return f"the energy gap {energy_gap:.3g} exceeds 1e4; lower lr_energy or data_step_size"
    if after < before - 0.1 * abs(before) - entries:
        fell = f"the log-likelihood fell from {before:.4g} to {after:.4g} along the latent chain"
        return f"{fell}; lower latent_step_size"
    if displacement > 1:
        return f"the data chain moved entries by {displacement:.3g}, half the range; lower data_step_size"
    return None


def check_chains(terms: Mapping[str, Tensor], entries: int) -> None:
    """Raise Diverged where the logged terms of a training step show trouble."""
    value = {name: float(t.detach()) for name, t in terms.items()}
    trouble = chain_trouble(
        value["energy_data"] - value["energy_revised"],
        (value["log_posterior_start"], value["log_posterior_end"]),
        value["moved"],
        entries,
    )
    if trouble:
        raise Diverged(trouble)
