"""The figure of quality against revision steps, with the time they take on a second axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.style import COLOURS, save, styled

TITLES = {
    "coherence_joint": "joint coherence",
    "fd_clf_uncond": "FD-clf, joint",
    "coherence_cross": "cross coherence",
    "fd_clf_cond_cross": "FD-clf, cross",
}


def plot_refinement(entries: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> list[Path]:
    """One panel per measure: value by steps, a line per sampler, bands where there is an interval; dotted,
    on the right axis, milliseconds per sample.

    entries: as `measure_refinement` returns them. Steps are spaced by their order, 0 included.
    """
    shown = [name for name in TITLES if any(e["measure"] == name for e in entries)]
    steps = sorted({e["steps"] for e in entries})
    place = {count: i for i, count in enumerate(steps)}
    samplers = list(dict.fromkeys(e["sampler"] for e in entries))
    with styled() as plt:
        across = min(2, len(shown))
        down = -(-len(shown) // across)
        figure, axes = plt.subplots(
            down, across, figsize=(4.2 * across, 2.6 * down + 0.4), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, measure in zip(axes.flat, shown, strict=False):
            cost = axis.twinx()
            for sampler, colour in zip(samplers, COLOURS, strict=False):
                line = [e for e in entries if (e["measure"], e["sampler"]) == (measure, sampler)]
                if not line:
                    continue
                line.sort(key=lambda e: e["steps"])
                x = [place[e["steps"]] for e in line]
                axis.plot(
                    x, [e["value"] for e in line], color=colour, marker="o", markersize=3, label=sampler
                )
                if all(e["low"] is not None for e in line):
                    low, high = [e["low"] for e in line], [e["high"] for e in line]
                    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                cost.plot(x, [1000 * e["seconds"] for e in line], color=colour, linestyle=":", linewidth=1)
            axis.set(title=TITLES[measure], xlabel="revision steps")
            axis.set_xticks(range(len(steps)), [str(count) for count in steps])
            cost.set_ylabel("ms per sample (dotted)", fontsize=7)
            cost.set_ylim(bottom=0)
            cost.grid(False)
            axis.legend(frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return save(figure, path)
