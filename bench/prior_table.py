"""`bench table priors`: joint samples with the method's own prior beside those with ex-post densities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.cells import Cell, Column, Row, Table, span
from bench.config import resolve
from bench.errors import UsageError
from bench.footer import data_notes, one_seed_notes
from bench.matching import is_ablation, otherwise_planned
from bench.names import EX_POST
from bench.reference import reference
from bench.registry import method_names
from bench.sheets import choose
from bench.significance import evidence, mark_best
from bench.summary import Group, Query, Result, Run, collapsed_runs, estimate
from bench.table import estimate_cell, excluded_lines, method_order, one_judge, run_command
from datasets.spec import UserError

TITLE = "Joint samples from the method's own prior, and from densities fitted to its encodings"

MEASURES = (
    ("coherence_joint", "joint coherence", "higher", "fraction"),
    ("fd_clf_uncond", "FD-clf joint", "lower", "distance"),
    ("swd_uncond", "SWD joint", "lower", "distance"),
    ("attribute_joint", "attributes joint", "higher", "fraction"),
)
HEADS = {"": "own prior", "ex_post_normal": "normal", "ex_post_mixture": "mixture of 10"}
NOTE = (
    "Own prior: the default sampler, with its refinement. Normal, mixture of 10: z from a density fitted to "
    "the posterior means of 5,000 training tuples, all modalities given, after training (Ghosh et al. 2020), "
    "decoded without refinement; private latents from p(w). Posterior means vary less than draws of the "
    "posterior; those of a mixture of experts are means of several experts, which no decoder was trained on."
)


def prior_table(
    records: Iterable[Run],
    preset: str | None = None,
    dataset: str | None = None,
    methods: Sequence[str] | None = None,
) -> Table:
    """The table for one data set (None: digits, else any with such scores), of seeds that were scored so.

    Raises UsageError where no run was.
    """
    records = list(records)
    having = sorted({str(run.record.get("dataset")) for run in records if _has_density(run)})
    name = dataset or next((d for d in ("polymnist", "polydigits", *having) if d in having), "polymnist")
    group, others = choose(records, name, preset, name)
    book = reference()
    results = [r for r in group.results if not is_ablation(r, group, book)] if group else []
    scored = {id(r): [run for run in r.runs if _has_density(run)] for r in results}
    if group is None or not any(scored.values()):
        raise UsageError(
            "no run here was scored with ex-post densities; score one with "
            "`bench run --method mmvae --dataset polydigits --preset quick`"
        )
    results = [r for r in results if scored[id(r)] or _asks(r.method, group)]
    results.sort(key=lambda r: (*method_order(group.key.dataset, r.method), bool(r.overrides), r.overrides))
    table = Table(TITLE, [], [Row(r.label, r.method, overrides=r.overrides) for r in results])
    for result, row in zip(results, table.rows, strict=True):
        row.seeds = tuple(sorted(int(run.record.get("seed", 0)) for run in scored[id(result)]))
    for metric, title, better, style in MEASURES:
        query = Query(metric, "joint")
        for sampler, head in HEADS.items():
            column = Column(f"{metric}.{sampler or 'own'}", title, better, style)  # type: ignore[arg-type]
            _fill(table, column, head, query, [(r, scored[id(r)], sampler) for r in results])
    absent = [r.method for r in results if not scored[id(r)] and not r.overrides]
    known = method_names() if methods is None else methods
    here = {r.method for r in results} | book.ablations | otherwise_planned(group, others)
    missing = [m for m in known if m not in here and _asks(m, group)]
    table.rows += [Row(m, m, cells={c.key: Cell("missing") for c in table.columns}) for m in missing]
    table.rows.sort(key=lambda row: method_order(group.key.dataset, row.method))
    table.context = {"dataset": group.key.dataset, "preset": group.key.preset}
    table.notes = [*mark_best(table), NOTE, *data_notes(group)]
    table.notes.append("± is half of the 95 % interval: over seeds from two seeds on, else over examples.")
    table.notes += one_seed_notes(row.seeds for row in table.rows)
    if absent or missing:
        table.commands.append(run_command([*absent, *missing], group, []))
    table.excluded = excluded_lines(group, others)
    return table


def _has_density(run: Run) -> bool:
    return any(score.sampler in EX_POST for score in run.scores)


def _asks(method: str, group: Group) -> bool:
    """Whether the preset of a group asks for such samples; Diff-CMVAE's would be those of its CMVAE."""
    try:
        return "ex_post" in resolve(method, group.key.dataset, group.key.preset).plan.metrics
    except UserError:  # a method, data set or preset that is not here
        return True


def _fill(
    table: Table, column: Column, head: str, query: Query, cells: Sequence[tuple[Result, list[Run], str]]
) -> None:
    """Add one column, unless no run has a score for it. sampler "": the default one of the method."""
    named = [(runs, sampler or next(iter(result.samplers), "")) for result, runs, sampler in cells]
    estimates = [estimate(runs, lambda run, s=s: query.find(run, s)) for runs, s in named]
    if not any(estimates):
        return
    shown = []
    for (runs, sampler), found in zip(named, estimates, strict=True):
        if found is None:
            shown.append(Cell("none" if runs else "missing"))
            continue
        collapsed = bool(collapsed_runs(runs, sampler))
        cell = replace(estimate_cell(found), evidence=evidence(runs, query, sampler), rankable=not collapsed)
        known = collapsed and query.metric == "coherence_joint" and cell.state == "value"
        shown.append(replace(cell, state="collapsed") if known else cell)
    counts = span(n for found in estimates if found for n in found.n)
    table.columns.append(replace(column, header=f"{head}\nn={counts}"))
    for row, cell in zip(table.rows, one_judge(shown, estimates), strict=True):
        row.cells[column.key] = cell
