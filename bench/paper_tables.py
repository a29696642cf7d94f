"""The tables of the papers: published numbers, and beside them what this suite measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from bench.cells import Cell, Column, Row, Style, Table, span
from bench.errors import UsageError
from bench.footer import collapse_note, distance_notes, machines_of, one_seed_notes, state_notes
from bench.matching import find_result
from bench.measured import NOT_ASKED, captioned, measured_columns, unasked
from bench.names import closest
from bench.preset_files import preset_names
from bench.reference import SUITE, reference
from bench.registry import method_names
from bench.sheets import Line, Sheet, choose, lines_of, sheet_commands, sheet_notes, shown_runs
from bench.significance import evidence, mark_best
from bench.summary import Estimate, Query, Run, collapsed_runs, estimate
from bench.table import (
    empty_columns,
    estimate_cell,
    excluded_lines,
    hide_empty,
    one_judge,
    unfinished_cell,
)

STYLES: dict[str, Style] = {
    "sampling_time_s": "seconds",
    "train_time_s_per_iter": "seconds",
    "nfe": "plain",
    "param_overhead": "count",
}


def paper_table(
    name: str,
    records: Iterable[Run],
    preset: str | None = None,
    dataset: str | None = None,
    methods: Sequence[str] | None = None,
) -> Table:
    """Table `name` of the main paper (`7`), of this suite (`ablations`), of a source (`moe_ebm_paper/1`).

    Measured numbers come from the runs of the table's data set with preset `paper` if there are any, else
    from the most complete comparable group, else from the data set that stands in; `dataset` and `preset`
    choose. methods: names that can be run (None: all the suite knows). Raises UsageError for an unknown
    table or preset.
    """
    book = reference()
    records = list(records)
    known = method_names() if methods is None else list(methods)
    sheets = []
    parts = book.table(name)
    presets = {n for part in parts for n in preset_names(part.dataset)}
    presets |= {str(run.record.get("preset")) for run in records}
    if preset is not None and preset not in presets:
        raise UsageError(f"no preset '{preset}'{closest(preset, presets)}")
    for part in parts:
        group, others = choose(records, part.dataset, preset, dataset, part.stand_ins)
        prefix = f"{part.dataset}." if len(parts) > 1 else ""
        sheets.append(Sheet(part, group, others, book, prefix, preset=preset or ""))
    keys = dict.fromkeys(key for part in parts for key in part.methods)
    table = Table(parts[0].title, [], [])
    by_given = all(metric == "coherence_cross_n" for part in parts for metric, _ in part.columns)
    for number, sheet in enumerate(sheets):
        if by_given:
            _fill_by_given(table, sheet, list(keys), known)
        else:
            before = [other.group.key for other in sheets[:number] if other.group]
            fresh = sheet.group is None or sheet.group.key not in before
            _fill(table, sheet, list(keys), known, fresh)
    table.notes += mark_best(table)
    _finish(table, sheets, known)
    return table


def _fill(table: Table, sheet: Sheet, keys: Sequence[str], known: Sequence[str], fresh: bool = True) -> None:
    """Side by side: a published and measured columns for every metric of the part.

    fresh: whether the measured group is not in the table yet; one that stands in for two parts is shown once.
    """
    lines = lines_of(sheet, keys)
    _add_rows(table, lines)
    for metric, n_given in sheet.part.columns:
        quantity = sheet.book.quantities[metric]
        style = STYLES.get(metric, "distance" if metric.startswith("fid") else "fraction")
        title = f"{sheet.part.dataset} {quantity.title}" if sheet.prefix else quantity.title
        stands_in = sheet.group is not None and sheet.group.key.dataset != sheet.part.dataset
        named = quantity.title if stands_in else title
        column = Column(
            f"{sheet.prefix}{metric}.published",
            title,
            quantity.better,
            style,
            f"{sheet.prefix}{metric}",
            "published",
            "published",
        )
        if sheet.part.source != SUITE:
            table.columns.append(column)
            for line in lines:
                table.row(line.label).cells[column.key] = _published(sheet, line, metric, n_given)
        for measured in measured_columns(sheet, metric, named) if fresh else []:
            column = replace(
                column,
                key=f"{sheet.prefix}{measured.key}",
                title=measured.title,
                header=sheet.where,
                origin="measured",
            )
            cells, estimates = _measure(sheet, lines, measured.query, known)
            if unasked(sheet, metric, measured.query):
                cells = [Cell("n/a", note=NOT_ASKED) if c.state in ("missing", "none") else c for c in cells]
            if style == "seconds" and len(machines_of(shown_runs(sheet, lines))) > 1:
                cells = [replace(cell, rankable=False) for cell in cells]
            counts = "" if style == "seconds" else span(n for found in estimates if found for n in found.n)
            table.columns.append(
                replace(column, header=f"{sheet.where}\nn={counts}" if counts else sheet.where)
            )
            for line, cell in zip(lines, cells, strict=True):
                table.row(line.label).cells[column.key] = cell
            sound = [None if c.state == "collapsed" else e for c, e in zip(cells, estimates, strict=True)]
            sheet.notes += _best_seeds(column, lines, sound)


def _fill_by_given(table: Table, sheet: Sheet, keys: Sequence[str], known: Sequence[str]) -> None:
    """One column per number of given modalities; published and measured values in rows of their own."""
    metric = sheet.part.columns[0][0]
    better = sheet.book.quantities[metric].better
    published, measured = "published", sheet.where.replace("\n", " ")
    for key in keys:
        table.rows.append(Row(f"{sheet.book.variants[key].name}, {published}", origin="published"))
    table.rows += _reproductions(sheet, metric)
    kinds: dict[Literal["", "nested"], str] = {"": measured, "nested": f"{measured}, nested chain"}
    lines = [
        replace(line, label=f"{line.label}, {said}", counted=counted)
        for line in lines_of(sheet, keys)
        for counted, said in kinds.items()
    ]
    _add_rows(table, lines)
    for _, n_given in sheet.part.columns:
        column = Column(f"{metric}.{n_given}", f"{n_given} given", better, "fraction")
        for key in keys:
            row = table.row(f"{sheet.book.variants[key].name}, {published}")
            line = Line(row.label, key, sheet.book.variants[key])
            row.cells[column.key] = replace(_published(sheet, line, metric, n_given), rankable=False)
        every: list[Estimate | None] = []
        for counted in ("", "nested"):
            chosen = [line for line in lines if line.counted == counted]
            word = f"n_given={n_given}"
            query = Query(
                metric, "cross", (word, "nested") if counted else (word,), () if counted else ("nested",)
            )
            cells, estimates = _measure(sheet, chosen, query, known)
            every += estimates
            for line, cell in zip(chosen, cells, strict=True):
                # Nested subsets are easier or harder than the average subset: no contest between them.
                table.row(line.label).cells[column.key] = replace(cell, rankable=not counted)
        counts = span(n for found in every if found for n in found.n)
        table.columns.append(replace(column, header=f"n={counts}" if counts else ""))
    nested = {row.label for row in table.rows if row.label.endswith("nested chain") and not row.empty}
    table.rows = [row for row in table.rows if row.label in nested or not row.label.endswith("nested chain")]
    for row in table.rows:
        if f"{row.label}, nested chain" in nested:
            # A run evaluates the chain or all subsets: what the chain stands for is no gap.
            gaps = [key for key, cell in row.cells.items() if cell.state == "missing"]
            row.cells |= {key: Cell("none") for key in gaps}
    if nested:
        sheet.notes.append(
            "A nested chain is one subset per number of given modalities; --set plan.subsets=all scores all."
        )


def _reproductions(sheet: Sheet, metric: str) -> list[Row]:
    """Rows of another library's numbers, with those it quotes."""
    rows: dict[str, Row] = {}
    for found in sheet.book.reproductions:
        if (found.metric, found.dataset) != (metric, sheet.part.dataset):
            continue
        name = sheet.book.method_title(found.method)
        for label, value in (
            (f"{name}, MultiVae library", found.value),
            (f"{name}, quoted by MultiVae", found.paper),
        ):
            row = rows.setdefault(label, Row(label, origin="published"))
            row.cells[f"{metric}.{found.n_given}"] = Cell("value", value, rankable=False)
    return list(rows.values())


def _add_rows(table: Table, lines: Sequence[Line]) -> None:
    have = {row.label for row in table.rows}
    table.rows += [Row(line.label, line.variant.method) for line in lines if line.label not in have]


def _published(sheet: Sheet, line: Line, metric: str, n_given: int | None) -> Cell:
    part = sheet.part
    found = sheet.book.find(
        source=part.source,
        table=part.name,
        dataset=part.dataset,
        metric=metric,
        method=line.key,
        n_given=n_given,
    )
    if not found:
        return Cell("none")
    if found[0].value is None:
        return Cell("n/a", note="not printed in the source")
    return Cell("value", found[0].value, note=found[0].note)


def _measure(
    sheet: Sheet, lines: Sequence[Line], query: Query, known: Sequence[str]
) -> tuple[list[Cell], list[Estimate | None]]:
    """The measured cells of one column, from one judge, with the estimates behind them."""
    cells: list[Cell] = []
    estimates: list[Estimate | None] = []
    for line in lines:
        cell, found = _measured(sheet, line, query, known)
        cells.append(cell)
        estimates.append(found)
    return one_judge(cells, estimates), estimates


def _measured(sheet: Sheet, line: Line, query: Query, known: Sequence[str]) -> tuple[Cell, Estimate | None]:
    variant = line.variant
    result = line.result or find_result(sheet.group, variant, sheet.book)
    if result is None:
        return Cell("missing" if variant.method in known else "none"), None
    if not result.runs:
        return unfinished_cell(result), None
    sheet.seeds[line.label] = result.seeds
    sampler = sheet.part.sampler(variant, query.metric)
    if sampler is None or sampler not in result.samplers:
        serving = [s for s in result.samplers if any(query.find(run, s) for run in result.runs)]
        sampler = serving[0] if serving and sampler is None else sampler or ""
    found = estimate(result.runs, lambda run: query.find(run, sampler or ""))
    if found is None:
        drawn = [score for run in result.runs for score in run.scores if score.sampler]
        tasks = {score.task for score in drawn if not sampler or score.sampler == sampler}
        serves = not tasks or not query.task or query.task in tasks
        return Cell("missing" if serves else "none"), None
    cell = replace(estimate_cell(found), evidence=evidence(result.runs, query, sampler or ""))
    collapsed = collapsed_runs(result.runs, sampler or "")
    if collapsed and query.task == "joint":
        cell = replace(cell, rankable=False)
        if query.metric == "coherence_joint" and cell.state == "value":
            cell = replace(cell, state="collapsed", note=collapse_note(collapsed, len(result.runs)))
    return cell, found


def _best_seeds(column: Column, lines: Sequence[Line], estimates: Sequence[Estimate | None]) -> list[str]:
    """The best seed of each row with several: published values are the best of several settings."""
    pick = max if column.better == "higher" else min
    parts = [
        f"{line.label} {column.number(pick(found.values))}"
        for line, found in zip(lines, estimates, strict=True)
        if found and found.seeds > 1
    ]
    return [f"Best seed, {column.title}: {', '.join(parts)}."] if parts and column.better else []


def _finish(table: Table, sheets: Sequence[Sheet], known: Sequence[str]) -> None:
    """Context, seeds, notes, commands and the list of runs left out."""
    first = sheets[0]
    if first.group:
        key = first.group.key
        table.context = {
            "dataset": key.dataset,
            "fingerprint": key.fingerprint,
            "preset": key.preset,
            "metric_version": key.metric_version,
            "judge": key.judge,
            "plan": key.plan,
        }
    for sheet in sheets:
        for row in table.rows:
            row.seeds = row.seeds or sheet.seeds.get(row.label, ())
        table.notes += sheet_notes(sheet, table)
    if first.group:
        table.notes += state_notes(table, ("collapsed",)) + distance_notes(table)
        table.notes += one_seed_notes(row.seeds for row in table.rows)
    for sheet in sheets:
        table.excluded += excluded_lines(sheet.group, sheet.others) if sheet.group else []
    table.notes = list(dict.fromkeys(table.notes))
    absent = [
        v.name
        for s in sheets
        for k in s.part.methods
        if (v := s.book.variants[k]).method and v.method not in known
    ]
    if absent:
        table.notes.append(f"Not a method of this suite yet: {', '.join(dict.fromkeys(absent))}.")
    table.commands = list(dict.fromkeys(c for sheet in sheets for c in sheet_commands(table, sheet, known)))
    if any(captioned(sheet) for sheet in sheets):
        for reason, columns in empty_columns(table).items():
            table.notes.append(f"{', '.join(column.title for column in columns)}: n/a, {reason}")
    else:
        hide_empty(table)
