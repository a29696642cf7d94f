"""Comparison tables: every measured method of one data set side by side, and what stays out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from bench.cells import Cell, Column, Row, Table, span
from bench.errors import UsageError
from bench.footer import (
    collapse_note,
    data_notes,
    machines_of,
    plan_text,
    result_notes,
    run_name,
    shown_results,
)
from bench.matching import is_ablation, otherwise_planned
from bench.reference import reference
from bench.registry import method_names
from bench.significance import evidence, mark_best
from bench.summary import (
    Estimate,
    Group,
    Query,
    Result,
    Run,
    collapsed_runs,
    estimate,
    groups,
    key_of,
)
from bench.table_columns import MEASURES, Measure, shown_measures


def comparison_tables(
    records: Iterable[Run],
    dataset: str | None = None,
    preset: str | None = None,
    methods: Sequence[str] | None = None,
) -> list[Table]:
    """One table per data set found among the records, of its most complete group of comparable runs.

    dataset, preset: keep only these. methods: names that should have a row (None: all that the suite
    knows); those without a run are shown as missing. Raises UsageError where nothing is left to show.
    """
    methods = method_names() if methods is None else methods
    records = list(records)
    found = sorted({str(run.record.get("dataset", "")) for run in records})
    if not found:
        raise UsageError(
            "there are no runs to tabulate; start one with `bench run --method ours --dataset polydigits`"
        )
    if dataset is not None and dataset not in found:
        raise UsageError(
            f"there are no runs of data set '{dataset}', only of {', '.join(found)}; "
            f"start one with `bench run --method ours --dataset {dataset}`"
        )
    tables = []
    for name in [dataset] if dataset else found:
        here = groups(run for run in records if run.record.get("dataset") == name)
        chosen = next((group for group in here if preset in (None, group.key.preset)), None)
        if chosen is not None:
            tables.append(group_table(chosen, here, methods))
    if not tables:
        presets = sorted({str(run.record.get("preset", "")) for run in records})
        raise UsageError(
            f"there are no runs of preset '{preset}', only of {', '.join(presets)}; name one of these"
        )
    return tables


def group_table(group: Group, others: Sequence[Group] = (), methods: Sequence[str] = ()) -> Table:
    """The comparison table of one group; runs of `others` are listed below it.

    Ablations have tables of their own, and stand here only if there is nothing else.
    """
    compared = [r for r in group.results if not is_ablation(r, group, reference())] or group.results
    aside = [r for r in group.results if r not in compared]
    methods = [name for name in methods if name not in reference().ablations]
    lines = sorted(_lines(compared), key=lambda line: _order(group.key.dataset, line[0]))
    measures = shown_measures(group)
    table = Table(
        title=f"{group.key.dataset}, preset {group.key.preset}",
        columns=[measure.column for measure in measures],
        rows=[Row(label, r.method, sampler, r.overrides, r.seeds) for r, sampler, label in lines],
        context={
            "dataset": group.key.dataset,
            "fingerprint": group.key.fingerprint,
            "preset": group.key.preset,
            "metric_version": group.key.metric_version,
            "judge": group.key.judge,
            "plan": plan_text(group.key.plan),
        },
    )
    for index, measure in enumerate(measures):
        estimates = [_estimate(result, sampler, measure) for result, sampler, _ in lines]
        cells = [
            _cell(result, sampler, measure, found)
            for (result, sampler, _), found in zip(lines, estimates, strict=True)
        ]
        for row, cell in zip(table.rows, one_judge(cells, estimates), strict=True):
            row.cells[measure.column.key] = cell
        counts = span(n for found in estimates if found for n in found.n)
        header = f"n={counts}" if measure.column.group != "cost" and counts else ""
        table.columns[index] = replace(measure.column, header=header)
    for result, sampler, label in lines:
        _never_best_if_collapsed(table.row(label), result, sampler)
    one_machine(table, group)
    marks = mark_best(table)
    notes = [*shuffled_notes(lines), *chain_notes(table, group)]
    table.notes = data_notes(group) + notes + result_notes(group, table, marks)
    if aside:
        count = sum(len(result.runs) for result in aside)
        here = f"--dataset {group.key.dataset} --preset {group.key.preset}"
        table.notes.append(
            f"Ablations, {count} runs: `bench table ablations {here}`, also `3`, `9`, `moe_ebm_paper/2`."
        )
    elsewhere = otherwise_planned(group, others)
    _add_missing(table, replace(group, results=compared), [m for m in methods if m not in elsewhere])
    table.excluded = excluded_lines(group, others)
    hide_empty(table)
    return table


def _lines(results: Iterable[Result]) -> list[tuple[Result, str, str]]:
    """(result, sampler, label) of every row; a method with one sampler does not name it."""
    lines = []
    for result in results:
        samplers = result.samplers or [""]
        for sampler in samplers:
            name = f"{result.method} ({sampler})" if len(samplers) > 1 else result.method
            label = f"{name} [{result.overrides}]" if result.overrides else name
            lines.append((result, sampler, label))
    return lines


def shuffled_notes(lines: Sequence[tuple[Result, str, str]]) -> list[str]:
    """What the samples behind the attribute columns reach when picture and caption are paired at random."""
    notes = []
    for task in ("joint", "cross"):
        find = Query(f"attribute_{task}_shuffled", task).find
        found = [(label, estimate(r.runs, partial(find, sampler=name))) for r, name, label in lines]
        shown = [f"{label} {e.value:.3f}" for label, e in found if e is not None and e.value is not None]
        if shown:
            notes.append(f"Attributes {task}, the same samples paired at random: {', '.join(shown)}.")
    return notes


def chain_notes(table: Table, group: Group) -> list[str]:
    """That samples given several modalities are of one subset, where the plan has no more."""
    titles = [column.title for column in table.columns if column.key == "coherence_cross_most"]
    if not titles or json.loads(group.key.plan or "{}").get("subsets") != "nested":
        return []
    return [f"{titles[0]}: the first of the data set, one subset only; Table 5 has fewer given."]


def _order(dataset: str, result: Result) -> tuple[int, bool, str, bool, str]:
    return (*method_order(dataset, result.method), bool(result.overrides), result.overrides)


def method_order(dataset: str, method: str) -> tuple[int, bool, str]:
    """Sort key: the order of the main paper's tables; what they do not list stands before `ours`."""
    order = reference().order(dataset)
    listed = method in order
    return (order.index(method if listed else "ours"), listed, method)


def _estimate(result: Result, sampler: str, measure: Measure) -> Estimate | None:
    if not measure.per_sampler and sampler and sampler != result.samplers[0]:
        return None
    return estimate(result.runs, lambda run: measure.query.find(run, sampler if measure.per_sampler else ""))


def _cell(result: Result, sampler: str, measure: Measure, found: Estimate | None) -> Cell:
    """What one cell shows: the estimate, or why there is none."""
    if not result.runs:
        return unfinished_cell(result)
    if found is None:
        if not measure.per_sampler and sampler and sampler != result.samplers[0]:
            return Cell("same")
        tasks = {s.task for run in result.runs for s in run.scores if s.sampler == sampler}
        serves = not measure.per_sampler or measure.query.task in tasks
        return Cell("missing" if serves else "none")
    known = evidence(result.runs, measure.query, sampler if measure.per_sampler else "")
    return replace(estimate_cell(found), evidence=known)


def estimate_cell(found: Estimate) -> Cell:
    """An estimate as a cell; without a value `n/a` and the reason."""
    if found.value is None:
        return Cell("n/a", note=found.unavailable)
    n = min(found.n, default=None)
    return Cell("value", found.value, found.low, found.high, n=n, seeds=found.seeds)


def unfinished_cell(result: Result) -> Cell:
    """The cell of a method of which no run is done: the state of its latest run."""
    run = max(result.unfinished, key=lambda r: str(r.record.get("started") or ""))
    status = str(run.record.get("status", "failed"))
    state = {"skipped": "n/a", "done": "missing"}.get(status, status)
    known = state if state in ("n/a", "missing", "failed", "diverged", "running") else "failed"
    return Cell(known, note=str(run.record.get("reason") or ""))  # type: ignore[arg-type]


def one_judge(cells: Sequence[Cell], estimates: Sequence[Estimate | None]) -> list[Cell]:
    """Values of one column come from one judge: the commonest stays, the others become n/a."""
    votes = Counter(found.judges for found in estimates if found and found.value is not None)
    pure = Counter({judges: votes[judges] for judges in votes if len(judges) == 1})
    if not pure or len(votes) == 1 and len(pure) == 1:
        return list(cells)
    kept = pure.most_common(1)[0][0]
    other = Cell("n/a", note="scored by another judge than the rest of the column")
    return [
        other if found and found.value is not None and found.judges != kept else cell
        for cell, found in zip(cells, estimates, strict=True)
    ]


def _never_best_if_collapsed(row: Row, result: Result, sampler: str) -> None:
    """A sampler that shows one class too often prints `collapsed` and wins no column of joint samples.

    What it draws from given modalities is another matter, which these samples say nothing about.
    """
    found = collapsed_runs(result.runs, sampler)
    if not found:
        return
    joint = {m.column.key for m in MEASURES if m.query.task == "joint"}
    for key in joint & row.cells.keys():
        cell = row.cells[key]
        row.cells[key] = replace(cell, rankable=False)
        if key == "coherence_joint" and cell.state == "value":
            note = collapse_note(found, len(result.runs))
            row.cells[key] = replace(cell, state="collapsed", rankable=False, note=note)


def one_machine(table: Table, group: Group) -> None:
    """Times of different machines are shown but never ranked."""
    if len(machines_of(run for result in shown_results(group, table) for run in result.runs)) < 2:
        return
    for row in table.rows:
        for key in ("sampling_time_s", "sampling_cross_s", "train_time_s_per_iter"):
            if key in row.cells:
                row.cells[key] = replace(row.cells[key], rankable=False)


def _add_missing(table: Table, group: Group, methods: Sequence[str]) -> None:
    """Rows for methods without a run, and the commands that would fill what is missing."""
    absent = [m for m in methods if all(row.method != m for row in table.rows)]
    for method in absent:
        table.rows.append(Row(method, method, cells={c.key: Cell("missing") for c in table.columns}))
    order = {id(row): index for index, row in enumerate(table.rows)}
    table.rows.sort(key=lambda row: (*method_order(group.key.dataset, row.method), order[id(row)]))
    plain = [result for result in group.results if not result.overrides]
    all_seeds = sorted({seed for result in plain for seed in result.seeds})
    if absent:
        table.commands.append(run_command(absent, group, all_seeds if all_seeds != [0] else []))
    for result in plain:
        # A run that was skipped or diverged would end the same way again.
        if any(run.record.get("status") == "skipped" for run in result.unfinished):
            continue
        final = [run for run in result.unfinished if run.record.get("status") == "diverged"]
        settled = {*result.seeds, *(int(run.record.get("seed") or 0) for run in final)}
        lacking = [seed for seed in all_seeds if seed not in settled]
        cells = [cell for row in table.rows if row.method == result.method for cell in row.cells.values()]
        if lacking:
            table.commands.append(run_command([result.method], group, lacking if all_seeds != [0] else []))
        elif not result.runs and not final or any(cell.state == "missing" for cell in cells):
            table.commands.append(run_command([result.method], group, []))


def run_command(methods: Sequence[str], group: Group, seeds: Sequence[int]) -> str:
    """The command line that would make the runs."""
    names = " ".join(f"--method {method}" for method in methods)
    picked = "".join(f" --seed {seed}" for seed in seeds)
    return f"bench run {names} --dataset {group.key.dataset} --preset {group.key.preset}{picked}"


def excluded_lines(group: Group, others: Sequence[Group]) -> list[str]:
    """One line per run that is not in the table, with the reason."""
    lines = [f"{run_name(run)}: {reason}" for run, reason in group.dropped]
    inside = {id(run) for result in group.results for run in (*result.runs, *result.unfinished)}
    inside |= {id(run) for run, _ in group.dropped}
    for other in others:
        here = [run for result in other.results for run in (*result.runs, *result.unfinished)]
        for run in [*here, *(run for run, _ in other.dropped)]:
            if id(run) not in inside:
                inside.add(id(run))
                lines.append(f"{run_name(run)}: {_why_out(group, run)}")
    return sorted(lines)


def _why_out(group: Group, run: Run) -> str:
    """In words, what keeps a run out of a group."""
    key = key_of(run)
    said = {
        "preset": f"preset {key.preset}",
        "fingerprint": f"other data (fingerprint {key.fingerprint[:12]})",
        "metric_version": f"metric version {key.metric_version}",
        "plan": f"another evaluation plan ({plan_text(key.plan, group.key.plan)})",
        "judge": f"other judges ({key.judge[:12]})",
        "budget": f"another training budget ({key.budget})",
    }
    return ", ".join(said[name] for name in group.key.differences(key)) or "another group"


def hide_empty(table: Table, origin: str = "measured") -> None:
    """Drop the columns that no finished row has a value for, if for one reason; it goes to the notes."""
    for reason, columns in empty_columns(table, origin).items():
        columns = columns[: len(table.columns) - 1]
        table.columns = [column for column in table.columns if column not in columns]
        if columns:
            table.notes.append(f"{', '.join(c.title for c in columns)}: not available, {reason}")


def empty_columns(table: Table, origin: str = "measured") -> dict[str, list[Column]]:
    """Reason -> the columns in which it is all that finished rows have to show."""
    found: dict[str, list[Column]] = {}
    for column in [column for column in table.columns if column.origin == origin]:
        cells = [row.cells[column.key] for row in table.rows if row.seeds and column.key in row.cells]
        reasons = {cell.note for cell in cells if cell.state == "n/a"}
        empty = cells and all(cell.state in ("n/a", "none", "same") for cell in cells)
        if empty and len(reasons) == 1:
            found.setdefault(reasons.pop(), []).append(column)
    return found
