"""Which differences of a table are more than noise: variances against simulation and hand, marks, footers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.cells import Cell, Column, Row, Table
from bench.significance import Evidence, gap, half_width, mark_best, tuple_means


def test_over_seeds_it_is_the_paired_t_interval() -> None:
    a, b = Evidence({0: 5.0, 1: 6.5, 2: 7.0}), Evidence({0: 4.0, 1: 5.0, 2: 6.8, 9: 100.0})
    d = np.array([1.0, 1.5, 0.2])
    expected = stats.t.interval(0.95, 2, d.mean(), stats.sem(d))
    assert half_width(a, b) == pytest.approx((expected[1] - expected[0]) / 2)


def test_over_tuples_it_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(200), rng.random(200)
    a, b = (Evidence({0: float(v.mean())}, {}, {0: v}) for v in (x, y))
    expected = stats.ttest_rel(x, y).confidence_interval(0.95)
    assert half_width(a, b) == pytest.approx((expected.high - expected.low) / 2)


def test_tuples_that_share_pictures_widen_it() -> None:
    x, y = np.random.default_rng(0).random((2, 200))
    naive = 1.959964 * x.std(ddof=1) / 200**0.5
    plain = half_width(*(Evidence({0: float(v.mean())}, {}, {0: v}) for v in (x, y)))
    wide = half_width(*(Evidence({0: float(v.mean())}, {0: 3 * naive}, {0: v}) for v in (x, y)))
    assert wide == pytest.approx(3 * plain, rel=0.05)


def test_one_seed_without_outcomes_takes_both_intervals() -> None:
    assert half_width(Evidence({0: 1.0}, {0: 0.3}), Evidence({0: 2.0}, {0: 0.4})) == pytest.approx(0.5)
    assert half_width(Evidence({0: 1.0}, {0: 0.3}), Evidence({0: 2.0})) is None
    assert half_width(Evidence({0: 1.0}, {0: 0.3}), Evidence({1: 2.0}, {1: 0.3})) is None


def test_without_a_common_seed_rows_are_independent_samples() -> None:
    a, b = [0.4, 0.5, 0.61], [0.503, 0.7]
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    half = half_width(Evidence(dict(enumerate(a))), Evidence(dict(enumerate(b, start=3))))
    assert half == pytest.approx((interval.high - interval.low) / 2)
    one = half_width(Evidence({9: 0.5}), Evidence(dict(enumerate(a))))
    beside = half_width(Evidence({0: 0.5}), Evidence(dict(enumerate(a))))
    assert one == pytest.approx(beside)
    assert half_width(Evidence({0: 1.0, 1: 1.0}), Evidence({2: 2.0, 3: 2.0})) == 0.0


def test_one_seed_beside_several_varies_as_those_do() -> None:
    """A two-sample t-test in which one sample has a single value: the variance is that of the other."""
    one, several = [9.0], [1.0, 2.0, 6.0]
    both = stats.ttest_ind(one, several)
    half = half_width(Evidence({0: 9.0}, {0: 0.1}), Evidence(dict(enumerate(several)), {0: 0.1}))
    assert (np.mean(one) - np.mean(several)) / both.statistic * stats.t.ppf(0.975, 2) == pytest.approx(half)


def test_gaps_are_those_of_the_common_seeds() -> None:
    a = Cell("value", 5.0, evidence=Evidence({0: 4.0, 1: 6.0}))
    b = Cell("value", 9.0, evidence=Evidence({0: 3.0, 1: 4.0, 2: 20.0}))
    assert gap(a, b) == pytest.approx(1.5)
    assert gap(a, Cell("value", 9.0, evidence=Evidence({1: 9.0}))) == gap(a, Cell("value", 9.0)) == -4.0


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.05), (6, 0.05)])
def test_it_covers_what_it_says(seeds: int, spread: float) -> None:
    """Two methods of equal truth differ by more than the interval in at most about 5 % of all worlds."""
    rng, worlds, n = np.random.default_rng(1), 400, 200
    outside = 0
    for _ in range(worlds):
        hardness = rng.normal(0, 1, n)  # of the test tuples, common to all runs
        rows = []
        for _ in range(2):
            ability = 1 + rng.normal(0, 4 * spread, seeds)
            chance = 1 / (1 + np.exp(hardness - ability[:, None]))
            rows.append(rng.random((seeds, n)) < chance)
        a, b = (
            Evidence(
                {s: float(r[s].mean()) for s in range(seeds)},
                {},
                {s: r[s].astype(float) for s in range(seeds)},
            )
            for r in rows
        )
        gap = np.mean(list(a.values.values())) - np.mean(list(b.values.values()))
        outside += abs(gap) > half_width(a, b)
    assert outside / worlds < 0.08


def test_means_over_cells_leave_larger_subsets_out() -> None:
    cells = {
        "coherence_cross/ebm/m0/m1": np.array([True, False, True]),
        "coherence_cross/ebm/m1/m0": np.array([True, True, False]),
        "coherence_cross/ebm/m0+m1/m2": np.array([False, False, False]),
        "coherence_cross/gen/m0/m1": np.array([False, False, False]),
    }
    assert tuple_means(cells, "coherence_cross/ebm/").tolist() == [1.0, 0.5, 0.5]
    assert tuple_means(cells, "coherence_joint/ebm/") is None


def table(
    values: dict[str, float],
    known: dict[str, Evidence] | None = None,
    better: str = "higher",
    group: str = "quality",
) -> Table:
    column = Column("c", "coherence", better, "fraction", group)
    rows = [
        Row(name, name, cells={"c": Cell("value", v, seeds=3, evidence=(known or {}).get(name))})
        for name, v in values.items()
    ]
    return Table("t", [column], rows)


def marked(t: Table) -> list[str]:
    return [row.label for row in t.rows if row.cells["c"].best]


def test_what_noise_explains_is_marked_too() -> None:
    known = {
        "a": Evidence({0: 0.50, 1: 0.52, 2: 0.51}),
        "b": Evidence({0: 0.49, 1: 0.53, 2: 0.50}),
        "far": Evidence({0: 0.10, 1: 0.12, 2: 0.11}),
    }
    t = table({"a": 0.51, "b": 0.5067, "far": 0.11}, known)
    (said,) = mark_best(t)
    assert marked(t) == ["a", "b"] and said.startswith("Marked are the best mean")


def test_where_no_row_stands_out_none_is_marked() -> None:
    known = {"a": Evidence({0: 0.5, 1: 0.6}), "b": Evidence({0: 0.6, 1: 0.5})}
    t = table({"a": 0.55, "b": 0.55}, known)
    assert mark_best(t) == [] and marked(t) == []


def test_what_cannot_be_judged_is_named_and_the_best_mean_marked() -> None:
    known = {"a": Evidence({0: 500.0}), "b": Evidence({0: 400.0})}
    t = table({"a": 500.0, "b": 400.0}, known, better="lower")
    assert "coherence: rows of one seed" in mark_best(t)[1] and marked(t) == ["b"]
    t = table({"a": 500.0, "b": 400.0}, known, better="lower", group="cost")
    assert len(mark_best(t)) == 1 and marked(t) == ["b"]


def test_equal_values_share_the_mark_without_evidence() -> None:
    t = table({"a": 1.0, "b": 1.0, "c": 11.0}, better="lower", group="cost")
    mark_best(t)
    assert marked(t) == ["a", "b"]


def test_collapsed_rows_are_not_ranked() -> None:
    t = table({"a": 0.9, "b": 0.5, "c": 0.1})
    t.rows[0].cells["c"] = Cell("collapsed", 0.9, rankable=False)
    mark_best(t)
    assert marked(t) == ["b"]
