"""Seconds per training step against one setting, with the straight line that fits them best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UsageError
from bench.listing import columns
from bench.store import folder_name
from bench.style import COLOURS, save, styled
from bench.timing import Timing

MODALITIES = "modalities"
"""Swept as if it were a setting: the first so many modalities of the data set."""


@dataclass(frozen=True)
class Line:
    """seconds = intercept + slope * value; `r2` is the share of the variance that it explains."""

    slope: float
    intercept: float
    r2: float

    def at(self, value: float) -> float:
        return self.intercept + self.slope * value


def least_squares(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line with the least squared distance in y. Raises ValueError with fewer than two different x."""
    if len(set(x)) < 2:
        raise ValueError("a line needs at least two different values")
    slope, intercept = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    left = np.asarray(y) - (intercept + slope * np.asarray(x))
    spread = np.asarray(y) - np.mean(y)
    total = float(spread @ spread)
    return Line(float(slope), float(intercept), 1 - float(left @ left) / total if total else 1.0)


@dataclass(frozen=True)
class Swept:
    """The step of one method at every value of `key`."""

    title: str
    key: str
    values: Sequence[float]
    steps: Sequence[Timing]

    @property
    def line(self) -> Line:
        """Through the medians."""
        return least_squares(self.values, [step.median for step in self.steps])

    def to_json(self) -> dict[str, Any]:
        line = self.line
        return {
            "title": self.title,
            "key": self.key,
            "values": list(self.values),
            "median_s": [step.median for step in self.steps],
            "p10_s": [step.p10 for step in self.steps],
            "p90_s": [step.p90 for step in self.steps],
            "line": {"slope_s": line.slope, "intercept_s": line.intercept, "r2": line.r2},
        }


def parse_sweep(text: str, modalities: int) -> tuple[str, list[float]]:
    """`data_steps=5,10,20` -> ("data_steps", [5, 10, 20]).

    Raises UsageError for anything that is not a key with at least two different numbers, or more modalities
    than the data set has.
    """
    key, sign, listed = text.partition("=")
    try:
        values = sorted({float(part) for part in listed.split(",")})
    except ValueError:
        values = []
    if not sign or not key.strip() or len(values) < 2:
        raise UsageError(
            f"--sweep needs KEY=v1,v2,... with two numbers or more, got '{text}'; write for example "
            "--sweep data_steps=5,10,20"
        )
    key = key.strip()
    if key == MODALITIES and not all(v == int(v) and 1 <= v <= modalities for v in values):
        raise UsageError(f"--sweep modalities takes whole numbers from 1 to {modalities}, got '{listed}'")
    return key, values


def sweep_text(swept: Swept) -> str:
    """The medians beside the line, and how well it fits."""
    line = swept.line
    rows = [[swept.key, "seconds per step", "p10", "p90", "line"]]
    for value, step in zip(swept.values, swept.steps, strict=True):
        figures = (step.median, step.p10, step.p90, line.at(value))
        rows.append([f"{value:g}", *(f"{figure:.4g}" for figure in figures)])
    formula = f"{line.intercept:.4g} s + {line.slope:.4g} s * {swept.key}"
    return f"{swept.title}\n{columns(rows)}\nleast squares: {formula}, R2 {line.r2:.4f}"


def plot_sweep(swept: Swept, out: Path) -> list[Path]:
    """Draw the medians, p10 to p90 and the line into folder `out`; returns the files."""
    line, x = swept.line, np.asarray(swept.values)
    median = np.asarray([step.median for step in swept.steps])
    span = [median - [step.p10 for step in swept.steps], [step.p90 for step in swept.steps] - median]
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(4.2, 3.0))
        ends = np.asarray([min(0.0, x.min()), x.max()])
        label = f"{line.intercept:.3g} s + {line.slope:.3g} s per unit, R² {line.r2:.3f}"
        axes.plot(ends, line.intercept + line.slope * ends, color=COLOURS[1], label=label)
        axes.errorbar(x, median, span, fmt="o", color=COLOURS[0], capsize=3, label="median, p10 to p90")
        axes.set(xlabel=swept.key, ylabel="seconds per training step", title=swept.title)
        axes.set_ylim(bottom=min(0.0, line.at(0.0)))
        axes.legend()
        name = f"cost-{folder_name(swept.title.partition(',')[0])}-{folder_name(swept.key)}".replace(" ", "-")
        return save(figure, out / name)
