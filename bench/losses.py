"""Figures 2 and 3: the logged loss of one network, of `ours` and of its ablations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UsageError
from bench.matching import find_result, row_command
from bench.reference import Panel, PublishedFigure, Reference, reference
from bench.registry import method_names
from bench.sheets import choose
from bench.store import folder_name, read_log
from bench.style import COLOURS, save, styled
from bench.summary import Group, Result, Run, given

LETTERS = {"data_steps": "K", "latent_steps": "T"}
Curve = tuple[list[float], list[float]]


@dataclass
class Drawn:
    """One panel: label -> the curve of every seed, and the commands for rows that have none."""

    title: str
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def plot_losses(
    name: str, records: Sequence[Run], out: Path, dataset: str | None = None, preset: str | None = None
) -> tuple[list[Path], list[str]]:
    """Draw figure `name` into folder `out`; returns the files, and commands for the curves that are missing.

    Every row of a panel has one curve per seed; runs of its methods with another value of what the panel
    varies are drawn too. Raises UsageError where no run has a curve.
    """
    book = reference()
    figure = book.figure(name)
    group, _ = choose(records, figure.dataset, preset, dataset)
    panels = [_panel(panel, figure, group, book, dataset, preset) for panel in figure.panels]
    commands = list(dict.fromkeys(command for panel in panels for command in panel.commands))
    if group is None or not any(panel.curves for panel in panels):
        first = f"; start with `{commands[0]}`" if commands else ""
        raise UsageError(f"no run here has logged what figure {name} shows{first}")
    where = f"{group.key.dataset}, preset {group.key.preset}"
    path = out / f"{figure.term}-loss-{folder_name(group.key.dataset)}-{group.key.preset}"
    return _draw(panels, f"{figure.title}, {where}", path), commands


def _panel(
    panel: Panel,
    figure: PublishedFigure,
    group: Group | None,
    book: Reference,
    dataset: str | None,
    preset: str | None,
) -> Drawn:
    """The curves of one panel: its rows, then other runs of their methods that differ in what it varies."""
    drawn = Drawn(panel.title)
    where = (group.key.dataset, group.key.preset) if group else (dataset or figure.dataset, preset or "paper")
    names: dict[str, str] = {}
    chosen: list[Result] = []
    for key in panel.rows:
        variant = book.variants[key]
        names.setdefault(variant.method, variant.name.split(",")[0])
        result = find_result(group, variant, book)
        if result is not None and result not in chosen and _curves(result, figure.term):
            chosen.append(result)
        elif result not in chosen and variant.method in method_names():
            command = row_command(variant, *where)
            drawn.commands += [command] if command else []
    for result in group.results if group else ():
        changed = {key for run in result.runs for key in given(run)}
        if result.method in names and result not in chosen and changed <= {panel.varies}:
            chosen.append(result)
    order = list(names)
    for result in sorted(chosen, key=lambda r: (order.index(r.method), _value(r, panel.varies))):
        curves = _curves(result, figure.term)
        if curves:
            label = f"{names[result.method]}, {LETTERS[panel.varies]}={_value(result, panel.varies)}"
            drawn.curves[label] = curves
    return drawn


def _value(result: Result, key: str) -> int:
    return int(result.runs[0].record["config"]["hyper"].get(key, 0)) if result.runs else 0


def _curves(result: Result, term: str) -> list[Curve]:
    """(steps, values) of a logged training term, one curve per run that has it."""
    out = []
    for run in result.runs:
        lines = [line for line in read_log(run.folder) if line.get("kind", "train") == "train"]
        points = [(line["step"], line["terms"][term]) for line in lines if term in line.get("terms", {})]
        points = [(step, value) for step, value in points if isinstance(value, int | float)]
        if points:
            steps, values = zip(*points, strict=True)
            out.append((list(map(float, steps)), list(map(float, values))))
    return out


def _draw(panels: Sequence[Drawn], title: str, path: Path) -> list[Path]:
    """Panels side by side with a common scale of steps; one colour per row, one line per seed."""
    with styled() as plt:
        size = (3.6 * len(panels) + 0.4, 2.9 + 0.16 * max(len(panel.curves) for panel in panels))
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
        for axis, panel in zip(axes[0], panels, strict=True):
            axis.set(title=panel.title, xlabel="training step", ylabel="loss")
            for number, (label, curves) in enumerate(panel.curves.items()):
                colour = COLOURS[number % len(COLOURS)]
                for index, (steps, values) in enumerate(curves):
                    shown = label if index == 0 else None
                    axis.plot(steps, values, color=colour, linewidth=0.9, alpha=0.85, label=shown)
            _scale(axis, panel)
            if panel.curves:
                # Below the axes: curves fill a panel, and a legend among them is hard to read.
                axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.2), fontsize=7)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return save(figure, path)


def _scale(axis: Any, panel: Drawn) -> None:
    """The scale follows the bulk of the values, so that a spike does not flatten the rest."""
    values = [value for curves in panel.curves.values() for _, curve in curves for value in curve]
    if len(values) > 20:
        low, high = np.quantile(values, [0.01, 0.99])
        pad = 0.08 * (high - low) or 0.1
        axis.set_ylim(low - pad, high + pad)
