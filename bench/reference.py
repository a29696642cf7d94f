"""Published numbers of the papers, as typed records read once from `reference.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bench.errors import UsageError
from bench.names import PRIORS

PATH = Path(__file__).with_name("reference.toml")
NOT_PRINTED = "n/a"
"""TOML has no null; this string stands where a source prints N/A or a dash."""

SHORT = {"cub_cond": "cub"}
"""Names of tables on the command line that are not those of the file."""

SUITE = "suite"
"""Source of the tables that no publication has."""


@dataclass(frozen=True)
class Source:
    """A publication numbers were read from."""

    key: str
    title: str
    arxiv: str


@dataclass(frozen=True)
class Variant:
    """A row name of a publication and the run of this suite that stands beside it.

    method: name of the suite's method, "" if the row stands beside several (`beside`).
    hyper: hyper-parameters the run must have, the only ones it may have been given. ablation: its runs stand
    in tables that name it and in no other. same_flops_as: key of the row whose training it must cost.
    chains: `hyper` are lengths of chains beside the paper's 30, to be cut where a preset runs shorter ones.
    """

    key: str
    name: str
    text: str = ""
    method: str = ""
    sampler: str | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    ablation: bool = False
    same_flops_as: str = ""
    chains: bool = False


@dataclass(frozen=True)
class Quantity:
    """A metric: column title, direction and meaning."""

    key: str
    title: str
    better: Literal["higher", "lower"]
    text: str


@dataclass(frozen=True)
class Entry:
    """One published number; `value` None where the source prints none."""

    source: str
    table: str
    dataset: str
    metric: str
    method: str
    value: float | None
    n_given: int | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One table of one source on one data set; `columns` are (metric, number of given modalities).

    closed: it has the rows that it names and no others. stand_ins: data sets that may stand in for its own.
    also: rows that the source does not have, each below the measured one of its method.
    """

    source: str
    name: str
    dataset: str
    title: str
    note: str
    columns: tuple[tuple[str, int | None], ...]
    methods: tuple[str, ...]
    samplers: Mapping[str, Mapping[str, str]]
    closed: bool = False
    stand_ins: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}"

    def sampler(self, variant: Variant, metric: str) -> str | None:
        """The sampler this table reports for a row and metric, where it differs from the usual one."""
        return self.samplers.get(metric, {}).get(variant.key, variant.sampler)


@dataclass(frozen=True)
class Panel:
    """Part of a figure: the rows it compares, and the hyper-parameter in which further runs may differ."""

    title: str
    rows: tuple[str, ...]
    varies: str


@dataclass(frozen=True)
class PublishedFigure:
    """A figure of training curves: the logged `term` of every row's runs, panel by panel."""

    name: str
    title: str
    dataset: str
    term: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Conflict:
    """A sentence on a disagreement between sources, and the tables it concerns."""

    tables: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Reproduction:
    """A value that another library reports; `paper` is what it quotes from the original paper."""

    dataset: str
    metric: str
    method: str
    value: float
    n_given: int | None = None
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Reference:
    """All published numbers, with the names needed to print them."""

    default_source: str
    sources: Mapping[str, Source]
    variants: Mapping[str, Variant]
    quantities: Mapping[str, Quantity]
    display_order: Mapping[str, tuple[str, ...]]
    tables: tuple[PublishedTable, ...]
    figures: tuple[PublishedFigure, ...]
    entries: tuple[Entry, ...]
    conflicts: tuple[Conflict, ...]
    reproductions: tuple[Reproduction, ...]

    def find(self, **wanted: str | int | None) -> list[Entry]:
        """Entries whose fields equal all of `wanted`, for example `table="7", method="ours"`.

        Raises TypeError for a field that entries do not have.
        """
        unknown = set(wanted) - set(Entry.__dataclass_fields__)
        if unknown:
            raise TypeError(f"entries have no field {sorted(unknown)}")
        return [e for e in self.entries if all(getattr(e, key) == value for key, value in wanted.items())]

    def value(
        self, source: str, table: str, dataset: str, metric: str, method: str, n_given: int | None = None
    ) -> float | None:
        """The published number of one cell, None where the source has no such cell or prints none."""
        cell = {"source": source, "table": table, "dataset": dataset, "metric": metric, "method": method}
        found = self.find(**cell, n_given=n_given)
        return found[0].value if found else None

    def table(self, name: str) -> list[PublishedTable]:
        """The parts of a table, `7`, `ablations` or `source/name`. Raises UsageError if unknown."""
        parts = [table for table in self.tables if name in (table.key, self.short_name(table))]
        if not parts:
            names = ", ".join([*dict.fromkeys(self.short_name(table) for table in self.tables), PRIORS])
            raise UsageError(f"there is no published table '{name}'; choose one of {names}")
        return parts

    def short_name(self, table: PublishedTable) -> str:
        """How a user names a table: without the source if it is the default one or this suite."""
        own = table.source in (self.default_source, SUITE)
        return SHORT.get(table.name, table.name) if own else table.key

    def figure(self, name: str) -> PublishedFigure:
        """The figure of training curves of that number; KeyError if there is none."""
        return {figure.name: figure for figure in self.figures}[name]

    @property
    def ablations(self) -> frozenset[str]:
        """Methods of the suite that are ablations in every row that names them."""
        rows = self.variants.values()
        return frozenset(v.method for v in rows if v.ablation) - {v.method for v in rows if not v.ablation}

    def conflicts_of(self, table: PublishedTable) -> list[str]:
        """Sentences on what other sources say differently."""
        return [conflict.text for conflict in self.conflicts if table.key in conflict.tables]

    def order(self, dataset: str) -> list[str]:
        """Names of the suite's methods in the order of the main paper's tables on `dataset`."""
        keys = self.display_order.get(dataset, self.display_order["polymnist"])
        names: list[str] = []
        for key in keys:
            variant = self.variants[key]
            names += list(variant.beside) or [variant.method]
        return names

    def method_title(self, method: str) -> str:
        """Display name of a method; names that no publication has are shown as they are."""
        variant = self.variants.get(method)
        return variant.name if variant else method


def _entries(raw: Mapping[str, Any]) -> Iterator[Entry]:
    """The cells of one table of the file, row by row; its methods' notes win over the table's."""
    columns = [_column(text) for text in raw["metrics"]]
    for method, values in raw.get("rows", {}).items():
        note = raw.get("notes", {}).get(method, raw.get("note", ""))
        for (metric, n_given), value in zip(columns, values, strict=True):
            number = None if value == NOT_PRINTED else float(value)
            yield Entry(raw["source"], raw["table"], raw["dataset"], metric, method, number, n_given, note)


def _column(text: str) -> tuple[str, int | None]:
    """`coherence_cross_n@2` -> (`coherence_cross_n`, 2)."""
    metric, _, n_given = text.partition("@")
    return metric, int(n_given) if n_given else None


def _table(raw: Mapping[str, Any]) -> PublishedTable:
    return PublishedTable(
        raw["source"],
        raw["table"],
        raw["dataset"],
        raw["title"],
        raw.get("note", ""),
        tuple(_column(text) for text in raw["metrics"]),
        tuple(raw["methods"] if "methods" in raw else raw["rows"]),
        raw.get("samplers", {}),
        raw.get("closed", False),
        tuple(raw.get("stand_ins", ())),
        tuple(raw.get("also", ())),
    )


def _figure(raw: Mapping[str, Any]) -> PublishedFigure:
    panels = tuple(Panel(p["title"], tuple(p["rows"]), p["varies"]) for p in raw["panels"])
    return PublishedFigure(raw["figure"], raw["title"], raw["dataset"], raw["term"], panels)


def _variant(key: str, raw: Mapping[str, Any]) -> Variant:
    """A row name; without `method` it names the suite's method of the same name."""
    fields = {"method": key, **raw}
    return Variant(key=key, **{**fields, "beside": tuple(fields.get("beside", ()))})


@cache
def reference() -> Reference:
    """All published numbers; the file is read on the first call."""
    raw = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return Reference(
        default_source=raw["default_source"],
        sources={key: Source(key, **fields) for key, fields in raw["sources"].items()},
        variants={key: _variant(key, fields) for key, fields in raw["methods"].items()},
        quantities={key: Quantity(key, **fields) for key, fields in raw["metrics"].items()},
        display_order={key: tuple(names) for key, names in raw["display_order"].items()},
        tables=tuple(_table(table) for table in raw["tables"]),
        figures=tuple(_figure(figure) for figure in raw["figures"]),
        entries=tuple(entry for table in raw["tables"] for entry in _entries(table)),
        conflicts=tuple(Conflict(tuple(c["tables"]), c["text"]) for c in raw["conflicts"]),
        reproductions=tuple(Reproduction(**fields) for fields in raw["reproductions"]),
    )
