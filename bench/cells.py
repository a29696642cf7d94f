"""What a table is made of: columns, rows and cells, before any format is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bench.significance import Evidence

State = Literal["value", "missing", "n/a", "collapsed", "failed", "diverged", "running", "none", "same"]
WORDS: dict[str, str] = {"none": "-", "same": '"'}
"""How a state prints where its name is not the word: `same` repeats the row above, `none` has no meaning."""

Style = Literal["fraction", "distance", "seconds", "count", "plain"]


@dataclass(frozen=True)
class Column:
    """One column: `style` is how its numbers print, `group` what it belongs to (`quality`, `cost`).

    origin: `published` numbers and `measured` ones are never ranked against each other.
    header: further lines under the title, for example the number of examples.
    """

    key: str
    title: str
    better: Literal["higher", "lower", ""] = ""
    style: Style = "fraction"
    group: str = "quality"
    origin: Literal["measured", "published"] = "measured"
    header: str = ""

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]

    def number(self, value: float) -> str:
        """A value in this column's style."""
        if self.style == "fraction":
            return f"{value:.3f}"
        if self.style == "distance":
            return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
        if self.style == "count":
            return short_count(value)
        if self.style == "seconds":
            return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        return f"{value:g}"


def short_count(value: float) -> str:
    """`1234567` -> `1.23M`; below ten thousand the number itself."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * (1 if size > 1e3 else 10):
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{letter}"
    return f"{value:g}"


@dataclass(frozen=True)
class Cell:
    """One cell. `low`, `high`: 95 % interval; `seeds`: runs behind the value; `note`: why there is none;
    `evidence`: what tells a difference to another cell from noise; `rankable`: whether it may be best."""

    state: State = "none"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int = 0
    best: bool = False
    rankable: bool = True
    note: str = ""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    def text(self, column: Column, interval: bool = True) -> str:
        """The cell as plain text, `0.594 ± 0.012`; the half width is that of the interval."""
        if self.state != "value" or self.value is None:
            return WORDS.get(self.state, self.state)
        shown = column.number(self.value)
        if not interval or self.low is None or self.high is None:
            return shown
        if self.high > self.low or column.style in ("fraction", "distance"):
            shown += f" ± {column.number((self.high - self.low) / 2)}"
        return shown


@dataclass
class Row:
    """One row: a method with its sampler and overrides (`ours [beta=2.5]`), or a published name.

    origin: where the numbers of the whole row come from, if the columns do not say so.
    """

    label: str
    method: str = ""
    sampler: str = ""
    overrides: str = ""
    seeds: tuple[int, ...] = ()
    origin: Literal["measured", "published", ""] = ""
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether no cell holds a number."""
        return all(cell.value is None for cell in self.cells.values())


@dataclass
class Table:
    """A table with everything a reader must know beside it.

    context: dataset, fingerprint, preset, metric_version, judge, plan. notes: footer lines. excluded:
    runs that are not in the table, one line each. commands: what would fill the missing cells.
    """

    title: str
    columns: list[Column]
    rows: list[Row]
    context: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def cell(self, row: Row, column: Column) -> Cell:
        return row.cells.get(column.key, Cell())

    def row(self, label: str) -> Row:
        """The row of that label; KeyError if there is none."""
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(label)

    def column(self, key: str) -> Column:
        """The column of that key; KeyError if there is none."""
        for column in self.columns:
            if column.key == key:
                return column
        raise KeyError(key)

    def long(self) -> list[dict[str, Any]]:
        """One dictionary per cell: the tidy form behind the CSV."""
        fixed = {
            key: self.context.get(key, "") for key in ("dataset", "fingerprint", "preset", "metric_version")
        }
        return [
            {
                "table": self.title,
                **fixed,
                "row": row.label,
                "method": row.method,
                "sampler": row.sampler,
                "overrides": row.overrides,
                "column": column.key,
                "title": column.title,
                "origin": row.origin or column.origin,
                "better": column.better,
                "state": cell.state,
                "value": cell.value,
                "low": cell.low,
                "high": cell.high,
                "n": cell.n,
                "seeds": cell.seeds,
                "best": cell.best,
                "note": cell.note,
            }
            for row in self.rows
            for column in self.columns
            for cell in (self.cell(row, column),)
        ]


def span(numbers: Iterable[int]) -> str:
    """`1,000`, or `900-1,000` where they differ."""
    found = sorted(set(numbers))
    if not found:
        return ""
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,}-{found[-1]:,}"
