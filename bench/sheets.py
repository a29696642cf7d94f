"""What a table of a paper is filled from: its rows, the measured group beside it, and its footer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.cells import Table
from bench.footer import data_notes, health_notes, machine_notes
from bench.matching import (
    budget_of,
    find_result,
    is_ablation,
    is_named_again,
    is_the_preset,
    needed,
    otherwise_planned,
    row_command,
)
from bench.reference import SUITE, PublishedTable, Reference, Variant
from bench.summary import Group, Result, Run, groups
from bench.table import method_order

SUBSTITUTES = {"polymnist": ("polydigits",), "cub": ("shapes",), "cub256": ("shapes",), "coco": ("shapes",)}
"""Data that stand in for a paper's where nothing was measured on it; the column head says so."""


@dataclass(frozen=True)
class Line:
    """A row to fill: its label, the published key ("" if none) and the runs that stand beside it.

    result: these runs, where `variant` alone does not name them (overrides, methods of no paper).
    """

    label: str
    key: str
    variant: Variant
    result: Result | None = None
    counted: Literal["", "nested"] = ""


@dataclass
class Sheet:
    """What one part of a table is filled from: the published part and the measured group, if any."""

    part: PublishedTable
    group: Group | None
    others: list[Group]
    book: Reference
    prefix: str = ""
    notes: list[str] = field(default_factory=list)
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    preset: str = ""
    """The one that was asked for, if any."""

    @property
    def where(self) -> str:
        """Second line of a measured column: `measured`, or which data and preset stand in."""
        key = self.group.key if self.group else None
        if key is None or (key.dataset, key.preset) == (self.part.dataset, "paper"):
            return "measured"
        return f"measured:\n{key.dataset},\n{key.preset}"


def choose(
    records: Sequence[Run],
    wanted: str,
    preset: str | None = None,
    dataset: str | None = None,
    stand_ins: Sequence[str] = (),
) -> tuple[Group | None, list[Group]]:
    """The group measured numbers come from, and all groups of its data set."""
    for name in [dataset] if dataset else [wanted, *(stand_ins or SUBSTITUTES.get(wanted, ()))]:
        here = groups(run for run in records if run.record.get("dataset") == name)
        usable = [group for group in here if group.runs and preset in (None, group.key.preset)]
        usable.sort(key=lambda group: group.key.preset != "paper")
        if usable:
            return usable[0], here
    return None, []


def where_of(sheet: Sheet) -> tuple[str, str]:
    """Data set and preset of the measured rows, the table's own and `paper` where there are none."""
    key = sheet.group.key if sheet.group else None
    return (key.dataset, key.preset) if key else (sheet.part.dataset, "paper")


def lines_of(sheet: Sheet, keys: Sequence[str]) -> list[Line]:
    """Published rows in their order, a row per variant a name may stand for, then other measured methods.

    What another table names as an ablation belongs there. A closed table has no others but further runs of
    the ablations that it names. In a table of the suite an ablation that the preset is anyway has no row, nor
    has one whose runs another row has.
    """
    variants = sheet.book.variants
    lines: list[Line] = []
    for key in keys:
        variant = variants[key]
        lines.append(Line(variant.name, key, variant))
        lines += [Line(variants[b].name, "", variants[b]) for b in variant.beside if b not in keys]
    if sheet.part.source == SUITE:
        where, named = where_of(sheet), [variants[key] for key in keys]
        lines = [line for line in lines if not is_the_preset(line.variant, *where)]
        lines = [line for line in lines if not is_named_again(line.variant, named, *where)]
    published = list(lines)
    lines = [line for row in published for line in (row, *_also(sheet, row.variant))]
    if sheet.group is None:
        return lines
    group, book = sheet.group, sheet.book
    used = {id(find_result(group, line.variant, book)) for line in published}
    rest = [r for r in group.results if r.runs and id(r) not in used]
    if sheet.part.closed:
        named = book.ablations & {line.variant.method for line in lines}
        rest = [r for r in rest if r.method in named]
    else:
        rest = [r for r in rest if not is_ablation(r, group, book)]
    for result in sorted(rest, key=lambda r: (*method_order(sheet.part.dataset, r.method), r.overrides)):
        known = variants.get(result.method, Variant(result.method, result.method, method=result.method))
        label = f"{known.name} [{result.overrides}]" if result.overrides else known.name
        lines += [Line(label, "", known, result), *([] if result.overrides else _also(sheet, known))]
    return lines


def _also(sheet: Sheet, variant: Variant) -> list[Line]:
    """The further rows of a method's usual run."""
    variants = sheet.book.variants
    also = [k for k in sheet.part.also if variants[k].method == variant.method and not variant.hyper]
    return [Line(variants[k].name, "", variants[k]) for k in also]


def sheet_notes(sheet: Sheet, table: Table) -> list[str]:
    """Source, comparability, samplers, conflicts and what the measured group says about itself."""
    part, group = sheet.part, sheet.group
    source = sheet.book.sources[part.source]
    own = part.source == SUITE
    notes = [] if own else [f"Published: {source.title}, arXiv {source.arxiv}."]
    if group is None:
        asked = f" with preset {sheet.preset}" if sheet.preset else ""
        notes.append(f"Nothing was measured on {part.dataset}{asked} yet.")
    elif sheet.where != "measured" and not own:
        notes.append(
            f"Measured on {group.key.dataset} with preset {group.key.preset}: not comparable with the "
            f"published numbers, which need {part.dataset} and preset paper."
        )
    if part.note:
        notes.append(f"Note: {part.note}.")
    entries = sheet.book.find(source=part.source, table=part.name, dataset=part.dataset)
    marked: dict[str, list[str]] = {}
    for entry in entries:
        if entry.note and entry.note != part.note:
            marked.setdefault(entry.note, []).append(sheet.book.variants[entry.method].name)
    for note, names in marked.items():
        notes.append(f"{'; '.join(dict.fromkeys(names))}: {note}.")
    lines = lines_of(sheet, part.methods) if group else []
    for variant in (line.variant for line in lines):
        used = {m: sheet.part.sampler(variant, m) for m, _ in part.columns}
        if len({variant.sampler, *used.values()}) > 1:
            shown = ", ".join(f"{sheet.book.quantities[m].title} with sampler {s}" for m, s in used.items())
            notes.append(f"{variant.name}, measured: {shown}.")
    notes += _shorter_chains(sheet)
    notes += [f"Sources disagree: {text}" for text in sheet.book.conflicts_of(part)]
    if group:
        runs = shown_runs(sheet, lines)
        notes += data_notes(group) + health_notes(runs)
        if any(note.startswith("Data note") for note in notes):
            notes.append(
                "With data that differ from the paper's, distances do not compare and coherence does in kind."
            )
        if max((len(r.seeds) for r in group.results), default=0):
            notes.append("± is half of the 95 % interval: over seeds from two seeds on, else over examples.")
        if any(column.style == "seconds" for column in table.columns):
            notes += machine_notes(runs)
    return notes + sheet.notes


def shown_runs(sheet: Sheet, lines: Iterable[Line]) -> list[Run]:
    """The runs behind these rows, each once."""
    group = sheet.group
    if group is None:
        return []
    results = [line.result or find_result(group, line.variant, sheet.book) for line in lines]
    return list({str(run.folder): run for result in results if result for run in result.runs}.values())


def _shorter_chains(sheet: Sheet) -> list[str]:
    """What stands for the paper's lengths of chains where the preset runs shorter ones."""
    key = sheet.group.key if sheet.group else None
    said = []
    for variant in (sheet.book.variants[name] for name in sheet.part.methods if key):
        mine = needed(variant, key.dataset, key.preset)
        if mine != variant.hyper:
            said.append(f"{variant.name} by {', '.join(f'{k}={v}' for k, v in mine.items())}")
    return [f"Chains of preset {key.preset} are shorter than the paper's: {'; '.join(said)}."] if said else []


def sheet_commands(table: Table, sheet: Sheet, known: Sequence[str]) -> list[str]:
    """Commands for rows whose measured cells are missing, on the table's own data and preset."""
    dataset, preset = where_of(sheet)
    measured = {column.key for column in table.columns if column.origin == "measured"}
    elsewhere = otherwise_planned(sheet.group, sheet.others) if sheet.group else set()
    plain: list[str] = []
    commands: list[str] = []
    for line in lines_of(sheet, sheet.part.methods):
        method = "" if line.result else line.variant.method
        mine = [row for row in table.rows if row.method == method]
        # Where published and measured values have rows of their own, the label says which.
        rows = [r for r in mine if r.label == line.label or r.label.startswith(f"{line.label}, measured")]
        missing = any(
            cell.state == "missing" for row in rows for k, cell in row.cells.items() if k in measured
        )
        if not missing or method not in known:
            continue
        if line.variant.hyper:
            flops = budget_of(sheet.group, line.variant, sheet.book) if sheet.group else None
            command = row_command(line.variant, dataset, preset, flops)
            commands += [command] if command else []
        elif method not in elsewhere:
            plain.append(method)
    if plain:
        names = " ".join(f"--method {method}" for method in dict.fromkeys(plain))
        commands.insert(0, f"bench run {names} --dataset {dataset} --preset {preset}")
    return commands
