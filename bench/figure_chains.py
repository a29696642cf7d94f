"""The figure of chain diagnostics: profile, acceptance and displacement by step, autocorrelation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.figure import quantity_name
from bench.style import COLOURS, save, styled
from methods.base import Chain, Trace
from metrics.chain_diagnostics import autocorrelation, mixing, quantities


def plot_diagnostics(chains: Sequence[tuple[Chain, Chain]], path: Path, title: str = "") -> list[Path]:
    """One row per kind of chain, from pairs (chains of the usual length, long chains).

    Left to right: energy or log-likelihood, acceptance that a Metropolis correction would have had,
    displacement, and the autocorrelation of energy and state along the second half of the long chains, with
    the integrated autocorrelation time and split-R-hat of each. Bands hold the middle 80 % of the chains.
    """
    with styled() as plt:
        figure, axes = plt.subplots(
            len(chains), 4, figsize=(10.5, 2.3 * len(chains) + 0.4), squeeze=False, layout="constrained"
        )
        for row, (chain, long) in zip(axes, chains, strict=True):
            assert chain.trace is not None and long.trace is not None
            _profile(row[0], chain.values, f"{chain.kind} chain: {quantity_name(chain.quantity)}")
            if chain.trace.acceptance is None:
                row[1].text(0.5, 0.5, "no noise", ha="center", va="center", transform=row[1].transAxes)
                row[1].set_axis_off()
            else:
                _profile(row[1], chain.trace.acceptance, "acceptance", first=1)
                row[1].set_ylim(-0.03, 1.03)
            _profile(row[2], chain.trace.displacement, "displacement (rms)")
            _autocorrelation(row[3], long.trace)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return save(figure, path)


def _profile(axis: Any, values: Any, name: str, first: int = 0) -> None:
    """Mean over chains `[steps, B]` at every step, with the band of the middle 80 %."""
    values = values.detach().cpu().float().numpy()
    steps = np.arange(first, first + len(values))
    low, high = np.quantile(values, [0.1, 0.9], axis=1)
    axis.fill_between(steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axis.plot(steps, values.mean(1), color=COLOURS[0])
    axis.set(xlabel="step", title=name)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _autocorrelation(axis: Any, trace: Trace) -> None:
    """Autocorrelation by lag; the legend says time (steps) and R-hat."""
    for colour, (name, values) in zip(COLOURS, quantities(trace).items(), strict=False):
        _, time, rhat = mixing(values)
        lags = autocorrelation(values)[: values.shape[1] // 2]
        label = f"{name}: {time:.0f} steps, R̂ {rhat:.2f}" if np.isfinite(time) else f"{name}: stands still"
        axis.plot(lags, color=colour, label=label, linewidth=1)
    axis.axhline(0, color="0.6", linewidth=0.6)
    axis.set(xlabel="lag", title=f"autocorrelation, {len(trace.energies) - 1} steps", ylim=(-0.5, 1.05))
    axis.legend(frameon=False, fontsize=6)
