"""How well do the Markov chains mix? Acceptance, displacement, autocorrelation time and split-R-hat.

The estimators are ArviZ's: split-R-hat, and the effective sample size of a mean (Vehtari et al. 2021).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from torch import Tensor

from metrics.chains import over_chains
from metrics.protocol import Score


class Trace(Protocol):
    """What a method says of B chains, before every step and after the last (`methods.base.Trace`)."""

    energies: Tensor
    displacement: Tensor
    projections: Tensor
    acceptance: Tensor | None


def step_scores(kind: str, trace: Trace) -> list[Score]:
    """`chain_acceptance` in [0, 1], mean over steps and chains, and `chain_displacement`: how far entries are
    from their start at the end of the chain, root mean square, in the units of the chain's state.

    Both with a normal 95 % interval over chains. A chain without noise has no acceptance.
    """
    steps = len(trace.energies) - 1
    found = [over_chains("chain_displacement", kind, trace.displacement[-1], steps)]
    if trace.acceptance is None:
        reason = "the chain has no noise, so Metropolis and Hastings have no ratio for it"
        found.append(Score("chain_acceptance", None, 0, "", task="chain", attribute=kind, unavailable=reason))
    else:
        found.append(over_chains("chain_acceptance", kind, trace.acceptance.mean(0), steps))
    return found


def quantities(trace: Trace) -> dict[str, NDArray[np.float64]]:
    """What the mixing of chains is judged by, each `[chains, draws]`: energy and projections of the state.

    The first half of every chain is left out as its way to where it mixes.
    """
    kept = len(trace.energies) // 2
    along = trace.projections[kept:].unbind(-1)
    found = {"energy": trace.energies[kept:]} | {f"projection {i + 1}": p for i, p in enumerate(along)}
    return {name: values.double().T.numpy() for name, values in found.items()}


def mixing(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Effective sample size, integrated autocorrelation time in steps, split-R-hat of `[chains, draws]`.

    The time is chains * draws / ESS: so many steps are worth one independent draw. nan where that cannot be
    told (a constant, fewer than four draws).
    """
    if values.shape[1] < 4 or np.ptp(values) == 0:
        return float("nan"), float("nan"), float("nan")
    ess = float(array_stats.ess(values, chain_axis=0, draw_axis=1, method="mean"))
    rhat = float(array_stats.rhat(values, chain_axis=0, draw_axis=1, method="split"))
    return ess, values.size / ess, rhat


def mixing_scores(kind: str, trace: Trace) -> list[Score]:
    """`chain_ess`, `chain_autocorrelation_time` (steps) and `chain_rhat` of every quantity of long chains.

    n is the number of chains. Near 1 is a good R-hat; above 1.01 the chains have not mixed.
    """
    scores = []
    for name, values in quantities(trace).items():
        found = mixing(values)
        for metric, value in zip(
            ("chain_ess", "chain_autocorrelation_time", "chain_rhat"), found, strict=True
        ):
            known = bool(np.isfinite(value))
            scores.append(
                Score(
                    metric,
                    value if known else None,
                    len(values),
                    "",
                    task="chain",
                    steps=len(trace.energies) - 1,
                    attribute=f"{kind} {name}",
                    unavailable="" if known else "the chains stand still or are too short",
                )
            )
    return scores


def autocorrelation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Autocorrelation `[draws]` at every lag, averaged over chains `[chains, draws]`; 1 at lag 0."""
    return np.asarray(array_stats.autocorr(values, axis=-1)).mean(0)
