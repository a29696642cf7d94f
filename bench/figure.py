"""Figures made from numbers: coherence against Frechet distance (1), chains (4), training curves (2, 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cells import Cell, Column, Row, Table
from bench.errors import UsageError
from bench.grids import GRID_DPI, Block, Words, cell_size, draw_block
from bench.style import COLOURS, FILLS, looks, save, styled

if TYPE_CHECKING:
    from datasets.spec import Batch
    from methods.base import Chain

PANELS = (
    ("unconditional", "coherence_joint", ("fid_uncond", "fd_clf_uncond")),
    ("conditional, one modality given", "coherence_cross", ("fid_cond_cross", "fd_clf_cond_cross")),
)
"""Panels of Figure 1: title, coherence, distances in order of preference."""

MOST_FRAMES = 17
"""Frames of a chain side by side, start and end among them; more do not fit a page."""

DISTANCES = {"fid": "FID (Inception)", "fd_clf": "FD-clf, Frechet distance in classifier features"}


# -- Figure 1 ----------------------------------------------------------------------------------------


CROSS = {"marker": "x", "color": "black", "markersize": 9, "zorder": 4, "linestyle": "none"}
"""The mark over a sampler that collapsed."""


def plot_scatter(table: Table, path: Path) -> list[Path]:
    """Figure 1: coherence against Frechet distance, one point per row of a comparison table.

    Two panels, unconditional and conditional; FID where it was measured, else the distance of the
    classifiers, and the axis says which. Bars are 95 % intervals, collapsed samplers are crossed out.
    Raises UsageError where no row has both numbers.
    """
    panels = [(title, *_axes_of(table, coherence, kinds)) for title, coherence, kinds in PANELS]
    panels = [panel for panel in panels if panel[3]]
    if not panels:
        raise UsageError(
            f"no run of '{table.title}' has both a coherence and a Frechet distance; "
            "run with plan.metrics that holds coherence and fd_clf"
        )
    with styled() as plt:
        shown = [row for row in table.rows if any(row.label == r.label for p in panels for r in p[3])]
        style = looks(row.method for row in shown)
        fills = _fills(shown)
        figure, axes = plt.subplots(
            1, len(panels), figsize=(max(4.2, 3.6 * len(panels)), 3.4), squeeze=False, layout="constrained"
        )
        handles: dict[str, Any] = {}
        for axis, (title, y, x, rows) in zip(axes[0], panels, strict=True):
            for row in rows:
                cells = (table.cell(row, x), table.cell(row, y))
                handles[row.label] = _point(axis, cells, style[row.method], fills[row.label])
            metric = next(name for name in DISTANCES if x.key.startswith(name))
            axis.set(title=title, xlabel=DISTANCES[metric], ylabel=y.title)
            axis.set_xlim(*frame_limits([row.cells[x.key].value for row in rows], 0.0, math.inf))
            axis.set_ylim(*frame_limits([row.cells[y.key].value for row in rows], 0.0, 1.0))
        order = [row.label for row in shown if row.label in handles]
        across = 2 if max(map(len, order)) > 24 else 4
        columns = min(across, len(order))
        figure.set_figheight(3.3 + 0.19 * -(-len(order) // columns))
        handles_shown = [handles[label] for label in order]
        # One entry for all crosses: the word beside every one of them would be hard to read.
        crosses = [line for axis in axes[0] for line in axis.lines if line.get_gid() == "collapsed"]
        if crosses:
            handles_shown, order = [*handles_shown, crosses[0]], [*order, "collapsed"]
        figure.legend(handles_shown, order, loc="outside lower center", ncols=columns, frameon=False)
        caption = _caption(table, [panel[1] for panel in panels])
        figure.suptitle(caption, fontsize=7, color="0.35", x=0.01, ha="left")
        return save(figure, path)


def frame_limits(values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """Limits of an axis: the points with room around them, little beyond what a value can be.

    Bars do not widen it: with two seeds they are many times as long as the differences between methods.
    """
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * max(abs(high), 1.0)
    edge = 0.03 * (high - low)
    return max(low - room, lowest - edge), min(high + room, highest + edge)


def _axes_of(
    table: Table, coherence: str, kinds: Sequence[str]
) -> tuple[Column | None, Column | None, list[Row]]:
    """Columns of a panel and the rows that have a number in both."""
    keys = [column.key for column in table.columns]
    for kind in kinds:
        if coherence in keys and kind in keys:
            y, x = table.column(coherence), table.column(kind)
            rows = [r for r in table.rows if _number(r.cells.get(y.key)) and _number(r.cells.get(x.key))]
            if rows:
                return y, x, rows
    return None, None, []


def _number(cell: Cell | None) -> bool:
    return cell is not None and cell.value is not None and cell.state in ("value", "collapsed")


def _fills(rows: Sequence[Row]) -> dict[str, str]:
    """Label -> fill of the marker: rows of one method differ in it."""
    out: dict[str, str] = {}
    count: dict[str, int] = {}
    for row in rows:
        number = count.get(row.method, 0)
        out[row.label], count[row.method] = FILLS[number % len(FILLS)], number + 1
    return out


def _point(axis: Any, cells: tuple[Cell, Cell], look: tuple[str, str], fill: str) -> Any:
    """One point with its intervals; a cross over it if the sampler collapsed."""
    (across, up), (colour, marker) = cells, look
    handle = axis.errorbar(
        across.value,
        up.value,
        xerr=_arms(across),
        yerr=_arms(up),
        color=colour,
        marker=marker,
        fillstyle=fill,
        markersize=6.5,
        markeredgewidth=1.2,
        markerfacecoloralt="white",
        elinewidth=0.8,
        capsize=1.5,
        linestyle="none",
        zorder=3,
    )
    if "collapsed" in (up.state, across.state):
        (cross,) = axis.plot(across.value, up.value, **CROSS)
        cross.set_gid("collapsed")
    return handle[0]


def _arms(cell: Cell) -> Any:
    """Lengths of the error bars below and above, None without an interval."""
    if cell.value is None or cell.low is None or cell.high is None:
        return None
    return [[max(0.0, cell.value - cell.low)], [max(0.0, cell.high - cell.value)]]


def _caption(table: Table, columns: Sequence[Column | None]) -> str:
    counts = [f"{c.title} {c.header.splitlines()[-1]}" for c in columns if c is not None and c.header]
    build = table.context.get("fingerprint", "")[:12]
    said = ", ".join([table.title, f"data {build}", *counts])
    return f"{said}. Better is up and left; bars are 95 % intervals, cut at the frame."


# -- Figure 4 ----------------------------------------------------------------------------------------


def plot_chain(
    chain: Chain,
    path: Path,
    observed: Batch | None = None,
    examples: int = 2,
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 4: states along a chain, one row per modality, above the energy or log-likelihood profile.

    chain: frames of the first `examples` chains are shown; the profile holds all chains, mean and the
    band between the 10 % and the 90 % quantile. observed: shown in a last column (posterior chains).
    """
    values = chain.values.detach().cpu().float().numpy().reshape(len(chain.values), -1)
    count = min([examples, *(len(cells) for frame in chain.frames[:1] for cells in frame.values())])
    blocks = [_chain_block(chain, i, observed) for i in range(count)]
    with styled() as plt:
        size, inch = cell_size(blocks)
        inch = min(inch, 0.36)
        width = max(4.5, blocks[0].width * inch + 0.6)
        rows = [len(block.rows) * inch + 0.2 for block in blocks]
        figure, axes = plt.subplots(
            count + 1, 1, figsize=(width, sum(rows) + 2.1), height_ratios=[*rows, 1.9], layout="constrained"
        )
        for axis, block in zip(axes[:-1], blocks, strict=True):
            axis.set_axis_off()
            draw_block(axis, block, size, words)
        _profile(axes[-1], values, chain)
        figure.suptitle(title or f"{chain.kind} chain", x=0.01, ha="left", fontsize=9)
        return save(figure, path, dpi=GRID_DPI)


def _chain_block(chain: Chain, index: int, observed: Batch | None) -> Block:
    """The frames of one example from left to right, the observation last."""
    import torch

    shown = np.unique(np.linspace(0, len(chain.frames) - 1, MOST_FRAMES).round().astype(int))
    rows = {}
    for name in chain.frames[0]:
        cells = [chain.frames[i][name][index].detach().cpu() for i in shown]
        if observed is not None and name in observed:
            cells.append(observed[name][index].detach().cpu())
        rows[name] = torch.stack(cells)
    labels = [str(chain.at[i]) for i in shown]
    if observed is not None:
        labels.append("obs.")
    return Block("", rows, columns=labels)


def quantity_name(quantity: str) -> str:
    """What an axis calls the quantity of a chain."""
    return {"energy": "energy U", "log_likelihood": "log-likelihood"}.get(quantity, quantity)


def _profile(axis: Any, values: Any, chain: Chain) -> None:
    """Mean over chains at every step, with the band of the middle 80 %."""
    steps = np.arange(len(values))
    low, high = np.quantile(values, [0.1, 0.9], axis=1)
    axis.fill_between(
        steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="10 % to 90 % of chains"
    )
    axis.plot(steps, values.mean(1), color=COLOURS[0], label=f"mean of {values.shape[1]} chains")
    axis.set(xlabel="step", ylabel=quantity_name(chain.quantity), xlim=(0, max(1, len(values) - 1)))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, loc="best")


# -- training curves ---------------------------------------------------------------------------------


def plot_training(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, terms: Sequence[str] = (), title: str = ""
) -> list[Path]:
    """Training curves: one panel per logged term, one line per run, validation dashed.

    logs: label of a run -> the lines of its train.jsonl. terms: which to draw (all if empty). A vertical line
    marks where a stage begins. Raises UsageError if there is nothing.
    """
    series = {label: _series(lines) for label, lines in logs.items()}
    found = list(dict.fromkeys(name for kinds in series.values() for kind in kinds.values() for name in kind))
    unknown = [term for term in terms if term not in found]
    if unknown:
        raise UsageError(f"no run logged the term '{unknown[0]}'; choose from {', '.join(found) or 'none'}")
    names = list(terms) or found
    if not names:
        raise UsageError("none of these runs has a training log; published records may come without one")
    with styled() as plt:
        across = min(3, len(names))
        down = -(-len(names) // across)
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(2.7 * across + 0.3, 1.9 * down + 0.5),
            squeeze=False,
            sharex=True,
            layout="constrained",
        )
        handles: dict[str, Any] = {}
        for index, axis in enumerate(axes.flat):
            if index >= len(names):
                axis.set_axis_off()
                continue
            _curves(axis, series, names[index], handles)
            axis.set_title(names[index].replace("_", " "))
            for begin in _stages(logs):
                axis.axvline(begin, color="0.6", linewidth=0.8, linestyle=":")
        for axis in [axes[(len(names) - 1 - c) // across][c] for c in range(across)]:
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
        if len(handles) > 1:
            figure.legend(
                handles.values(),
                handles,
                loc="outside lower center",
                ncols=min(4, len(handles)),
                frameon=False,
            )
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return save(figure, path)


Series = dict[str, dict[str, tuple[list[float], list[float]]]]
"""`train` or `val` -> term -> (steps, values)."""


def _series(lines: Sequence[Mapping[str, Any]]) -> Series:
    out: Series = {"train": {}, "val": {}}
    for line in lines:
        kind = out.setdefault(str(line.get("kind", "train")), {})
        terms = line.get("terms") or {
            k: v for k, v in line.items() if k not in ("step", "stage", "epoch", "kind")
        }
        for name, value in terms.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = kind.setdefault(name, ([], []))
                steps.append(float(line.get("step", len(steps))))
                values.append(float(value))
    return out


def _curves(axis: Any, series: Mapping[str, Series], term: str, handles: dict[str, Any]) -> None:
    """All runs of one term; the scale follows the bulk of the values, not a spike at the start."""
    everything: list[float] = []
    for number, (label, kinds) in enumerate(series.items()):
        for kind, dash in (("train", "-"), ("val", "--")):
            steps, values = kinds.get(kind, {}).get(term, ([], []))
            if not steps:
                continue
            (line,) = axis.plot(
                steps,
                values,
                dash,
                color=COLOURS[number % len(COLOURS)],
                linewidth=1.2,
                alpha=0.9,
                marker="." if len(steps) == 1 else None,
            )
            handles.setdefault(label if kind == "train" else f"{label}, validation", line)
            everything += values
    if len(everything) > 20:
        low, high = np.quantile(everything, [0.01, 0.99])
        pad = 0.08 * (high - low) or 0.1
        if high + pad < max(everything) or low - pad > min(everything):
            axis.set_ylim(low - pad, high + pad)


def _stages(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[float]:
    """Steps at which a new stage begins, over all runs."""
    begins = set()
    for lines in logs.values():
        for before, after in zip(lines, lines[1:], strict=False):
            if before.get("stage") != after.get("stage"):
                begins.add(float(before.get("step", 0)))
    return sorted(begins)
