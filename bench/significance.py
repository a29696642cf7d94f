"""Which differences in a column are more than noise: paired over seeds, and over test tuples where known.

The difference d of two rows has the variance

    V = s^2(d_seed) / k + D var(d_tuple) / n

over k common seeds and, for measures with right-or-wrong outcomes on the same test tuples, over n tuples
(outcomes averaged over cells and seeds before they are subtracted). For a row of one seed beside a row of
several the first term is s^2(seed) (1 / k_1 + 1 / k_2), as if both varied as much. D >= 1 allows for test
tuples that share pictures: the ratio of a row's own interval, which resamples pictures, to that of
independent tuples, squared.
Rows without a common seed are compared like independent samples of seeds (Welch).
|d| counts as a difference where it exceeds t(0.975, df) sqrt(V), with Satterthwaite's df.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bench.cells import Cell, Table
from bench.summary import Query, Run

Floats = NDArray[np.float64]
Z95 = 1.959964

PAIRED = ("coherence_cross",)
"""Metrics whose outcomes of two methods belong to the same test tuples; unconditional samples do not."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one cell, by seed: value, half of its own 95 % interval, outcomes `[n]` in [0, 1]."""

    values: Mapping[int, float]
    halves: Mapping[int, float] = field(default_factory=dict)
    tuples: Mapping[int, Floats] = field(default_factory=dict)


def evidence(runs: Sequence[Run], query: Query, sampler: str) -> Evidence | None:
    """The evidence behind the cell that `query` fills for these runs; None where there is no value."""
    values, halves, tuples = {}, {}, {}
    for run in runs:
        score = query.find(run, sampler)
        if score is None or score.value is None:
            continue
        seed = int(run.record.get("seed", 0))
        values[seed] = float(score.value)
        if score.low is not None and score.high is not None:
            halves[seed] = (score.high - score.low) / 2
        if query.metric in PAIRED and not query.attribute:
            found = tuple_means(run.outcomes, f"{query.metric}/{score.sampler or sampler}/")
            # Outcomes of another plan than the score's would pair what does not belong together.
            if found is not None and abs(found.mean() - score.value) < 1e-6:
                tuples[seed] = found
    return Evidence(values, halves, tuples) if values else None


def tuple_means(outcomes: Mapping[str, NDArray[np.bool_]], prefix: str) -> Floats | None:
    """Mean over the cells `<prefix><one given modality>/<target>` of every test tuple; None without cells."""
    cells = [v for k, v in outcomes.items() if k.startswith(prefix) and "+" not in k.removeprefix(prefix)]
    if not cells or len({len(cell) for cell in cells}) > 1:
        return None
    return np.mean(np.stack(cells), axis=0, dtype=np.float64)


def half_width(a: Evidence, b: Evidence) -> float | None:
    """Half of the 95 % interval of the difference of two cells; None where nothing says how wide it is."""
    from scipy.stats import t  # slow to import

    seeds = sorted(a.values.keys() & b.values.keys())
    if not seeds:
        return _unpaired(list(a.values.values()), list(b.values.values()))
    k, longer = len(seeds), max((a, b), key=lambda e: len(e.values))
    freedom, over_seeds = k - 1, 0.0
    if k > 1:
        over_seeds = float(np.var([a.values[s] - b.values[s] for s in seeds], ddof=1)) / k
    elif len(longer.values) > 1:
        freedom = len(longer.values) - 1
        over_seeds = float(np.var(list(longer.values.values()), ddof=1))
        over_seeds *= 1 / len(a.values) + 1 / len(b.values)
    over_tuples, n = _tuple_variance(a, b, seeds)
    if not freedom and not n:
        if not all(s in e.halves for e in (a, b) for s in seeds):
            return None
        return float(np.hypot(a.halves[seeds[0]], b.halves[seeds[0]]))
    total = over_seeds + over_tuples
    if total == 0:
        return 0.0
    spread = over_seeds**2 / freedom if freedom else 0.0
    spread += over_tuples**2 / (n - 1) if n > 1 else 0.0
    return float(t.ppf(0.975, total**2 / spread)) * total**0.5


def _unpaired(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Half of Welch's 95 % interval; a single value varies as the others do. None for two single values."""
    from scipy.stats import t, ttest_ind

    many = max((a, b), key=len)
    if len(many) == 1:
        return None
    if len(a) == 1 or len(b) == 1:
        variance = float(np.var(many, ddof=1)) * (1 + 1 / len(many))
        return float(t.ppf(0.975, len(many) - 1)) * variance**0.5
    if np.ptp(a) == np.ptp(b) == 0:
        return 0.0
    interval = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


def gap(a: Cell, b: Cell) -> float:
    """The difference of two cells: over common seeds where there are several, else of what they show."""
    assert a.value is not None and b.value is not None
    if a.evidence and b.evidence:
        seeds = a.evidence.values.keys() & b.evidence.values.keys()
        if len(seeds) > 1:
            return float(np.mean([a.evidence.values[s] - b.evidence.values[s] for s in sorted(seeds)]))
    return a.value - b.value


def _tuple_variance(a: Evidence, b: Evidence, seeds: Sequence[int]) -> tuple[float, int]:
    """D var(d_tuple) / n and n; (0, 0) where the two do not share test tuples."""
    if not all(s in e.tuples for e in (a, b) for s in seeds):
        return 0.0, 0
    means = [np.mean([e.tuples[s] for s in seeds], axis=0) for e in (a, b)]
    if len(means[0]) != len(means[1]) or len(means[0]) < 2:
        return 0.0, 0
    n = len(means[0])
    design = max(_design_effect(e, s) for e in (a, b) for s in seeds)
    return design * float(np.var(means[0] - means[1], ddof=1)) / n, n


def _design_effect(e: Evidence, seed: int) -> float:
    """(half width of the row's own interval / that of independent tuples)^2, at least 1."""
    naive = Z95 * float(np.std(e.tuples[seed], ddof=1)) / len(e.tuples[seed]) ** 0.5
    return max(1.0, (e.halves[seed] / naive) ** 2) if naive and seed in e.halves else 1.0


def mark_best(table: Table) -> list[str]:
    """Mark the best mean of every column, and what differs from it by noise only; nothing if all do.

    Cells that may not be ranked (collapsed samplers, costs from other hardware) never win. Returns sentences
    for the foot of the table: what a mark means, and where nothing says what is noise.
    """
    unjudged, marked = [], False
    for column in table.columns:
        cells = {row.label: row.cells[column.key] for row in table.rows if column.key in row.cells}
        ranked = {
            name: c for name, c in cells.items() if c.state == "value" and c.rankable and c.value is not None
        }
        if not column.better or len(ranked) < 2:
            continue
        best = (max if column.better == "higher" else min)(ranked, key=lambda name: ranked[name].value)
        halves = {name: _half(ranked[best], cell) for name, cell in ranked.items() if name != best}
        gaps = {name: abs(gap(ranked[name], ranked[best])) for name in halves}
        tied = [name for name, half in halves.items() if gaps[name] <= (half or 0.0) + 1e-12]
        if len(tied) + 1 == len(ranked):
            continue
        marked = True
        if column.origin == "measured" and column.group != "cost" and None in halves.values():
            unjudged.append(column.title)
        for row in table.rows:
            if row.label in (best, *tied):
                row.cells[column.key] = replace(row.cells[column.key], best=True)
    return _notes(marked, unjudged)


def _half(one: Cell, other: Cell) -> float | None:
    return half_width(one.evidence, other.evidence) if one.evidence and other.evidence else None


def _notes(marked: bool, unjudged: Sequence[str]) -> list[str]:
    notes = []
    if marked:
        notes.append(
            "Marked are the best mean of a column and what differs from it by noise only (95 %, paired over "
            "seeds and test tuples)."
        )
    if unjudged:
        notes.append(
            f"{', '.join(dict.fromkeys(unjudged))}: rows of one seed without an interval, so nothing says "
            "which differences are noise; among them only the best mean can be marked."
        )
    return notes
