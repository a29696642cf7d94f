"""What a reader must know beside a table, as sentences: data, plan, judges, ceiling, intervals, reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.cells import Table
from bench.health import Health
from bench.store import read_log, trained_code
from bench.summary import Group, Result, Run, settings_text


def run_name(run: Run) -> str:
    """How a run is named in a list: method, seed, start of its id."""
    record = run.record
    changed = settings_text(record.get("overrides") or {})
    name = f"{record.get('method')} [{changed}]" if changed else record.get("method")
    return f"{name} seed {record.get('seed', 0)} ({str(record.get('run_id', '?'))[:12]})"


def plan_text(plan: str, beside: str = "") -> str:
    """A plan (canonical JSON) as `joint=1000, cross=500`; with `beside` only what differs from that plan."""
    mine = json.loads(plan) if plan else {}
    theirs = json.loads(beside) if beside else {}
    shown = {k: v for k, v in mine.items() if (theirs.get(k) != v if beside else v is not None)}
    return ", ".join(f"{key}={_word(value)}" for key, value in shown.items())


def _word(value: Any) -> str:
    if value is None:
        return "all"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def data_notes(group: Group) -> list[str]:
    """Data, plan, judges and ceiling of a group."""
    key = group.key
    notes = [f"Data: {key.dataset}, fingerprint {key.fingerprint[:16] or 'unknown'}."]
    runs = group.runs
    for note in dict.fromkeys(
        str(n) for run in runs for n in (run.record.get("data") or {}).get("notes", [])
    ):
        notes.append(f"Data note: {note}")
    version = f", metric version {key.metric_version}" if key.metric_version else ""
    if key.plan:
        notes.append(f"Evaluation plan: {plan_text(key.plan)}{version}.")
    notes += [text for run in runs[:1] if (text := judges_text(run.record.get("judges")))]
    notes += ceiling_notes(runs)
    return notes


def judges_text(judges: Mapping[str, Any] | None) -> str:
    """Accuracy on real test pictures and source of every judge; empty without judges."""
    if not judges or not judges.get("accuracy"):
        return ""
    accuracy, source = judges["accuracy"], judges.get("source") or {}
    parts = [
        f"{name} {float(value):.3f}" + (f" ({source[name]})" if source.get(name) else "")
        for name, value in accuracy.items()
    ]
    return f"Judges, accuracy on real test data: {', '.join(parts)}; hash {str(judges.get('hash', ''))[:12]}."


BOUNDS = ("ceiling", "floor", "chance", "real_images")
"""Ends of the names of scores that real data alone decide."""

DISTANCES = ("fid", "fd_clf", "swd", "swd_fine")
NETWORKS = ("clip", "kid", "precision", "recall")
"""Of published networks, which say with how many pairs or images they were measured."""


def ceiling_notes(runs: list[Run]) -> list[str]:
    """What real test tuples score, distances between real splits, and how many real images stand behind."""
    shown: dict[str, str] = {}
    for run in runs:
        for score in run.scores:
            bound = next((b for b in BOUNDS if score.metric.endswith(f"_{b}")), "")
            if bound and score.value is not None and not (score.given or score.target or score.attribute):
                family = score.metric.removesuffix(f"_{bound}")
                count = f"n={score.n:,}" if bound == "floor" or family in NETWORKS else ""
                what = " ".join(part for part in (score.task, count) if part)
                name = f"{family} {bound}".replace("_", " ")
                text = f"{score.value:,.0f}" if bound == "real_images" else _bound_text(family, score.value)
                shown.setdefault(f"{name}{f' ({what})' if what else ''}", text)
    if not shown:
        return []
    return ["Real data: " + ", ".join(f"{name} {value}" for name, value in shown.items()) + "."]


def _bound_text(family: str, value: float) -> str:
    return f"{value:.2f}" if family in DISTANCES else f"{value:.4f}" if family == "kid" else f"{value:.3f}"


def result_notes(group: Group, table: Table, marks: Sequence[str] = ()) -> list[str]:
    """How intervals were made, what the `marks` mean, what failed, what the states in the cells mean.

    All of it of the rows in the table; ablations, which are not there, are left out.
    """
    notes = []
    results = shown_results(group, table)
    seeds = {len(result.seeds) for result in results if result.runs}
    if seeds and min(seeds) == 1:
        more = ", over seeds (Student's t) where it has more" if max(seeds) > 1 else ""
        notes.append(f"± is half of the 95 % interval over examples where a row has one seed{more}.")
    elif seeds:
        notes.append("± is half of the 95 % interval over seeds (Student's t).")
    several = [r.label for r in results if len({trained_code(run.record) for run in r.runs}) > 1]
    if several:
        own = "its" if len(several) == 1 else "their"
        notes.append(f"The seeds of {', '.join(several)} were trained with different versions of {own} code.")
    states = {cell.state for row in table.rows for cell in row.cells.values()}
    notes += marks
    notes += one_seed_notes(result.seeds for result in results if result.runs)
    if "same" in states:
        notes.append('" repeats the row above: the value does not depend on the sampler. - : no such task.')
    notes += [text for result in results for text in unfinished_notes(result)]
    runs = [run for result in results for run in result.runs]
    notes += health_notes(runs)
    notes += state_notes(table) + distance_notes(table)
    if any(column.style == "seconds" for column in table.columns):
        notes += machine_notes(runs)
    return notes


def shown_results(group: Group, table: Table) -> list[Result]:
    """The results of a group that have a row in the table."""
    shown = {(row.method, row.overrides) for row in table.rows}
    return [result for result in group.results if (result.method, result.overrides) in shown]


def machine_notes(runs: Iterable[Run]) -> list[str]:
    """Where the runs behind a table were timed."""
    machines = machines_of(runs)
    mixed = "; times of different machines are not ranked" if len(machines) > 1 else ""
    return [f"Times measured on {' and on '.join(machines)}{mixed}."] if machines else []


def machines_of(runs: Iterable[Run]) -> list[str]:
    """The machines these runs were timed on, each once."""
    return sorted({machine_text(run) for run in runs})


def health_notes(runs: Iterable[Run]) -> list[str]:
    """One sentence per run whose log ends with signs that training went wrong (`bench.health`)."""
    notes = []
    for run in runs:
        found = Health(read_log(run.folder)).lasting()
        if run.record.get("config", {}).get("hyper", {}).get("own_ends"):
            found.pop("share", None)  # its experts do not share what they learn; one record logged it still
        if found:
            notes.append(f"Training of {run_name(run)} ended with signs: {'; '.join(found.values())}.")
    return notes


def one_seed_notes(seeds: Iterable[Sequence[int]]) -> list[str]:
    """What a table must say whose measured rows, with these seeds each, all have one."""
    if {len(several) for several in seeds if several} != {1}:
        return []
    return ["One seed each: no interval here holds the difference between seeds."]


def state_notes(table: Table, states: Sequence[str] = ("n/a", "collapsed")) -> list[str]:
    """Why cells have no value or none that may be ranked, one sentence per column and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in (row for row in table.rows if row.seeds):
        for column in table.columns:
            cell = table.cell(row, column)
            if cell.note and cell.state in states:
                held = f" ({column.number(cell.value)})" if cell.value is not None else ""
                reasons.setdefault((column.title, f"{cell.state}: {cell.note}"), []).append(row.label + held)
    hidden = {column.title for column in table.columns if not _has_value(table, column.key)}
    notes = [
        f"{title} of {', '.join(labels)} is {reason}"
        for (title, reason), labels in reasons.items()
        if title not in hidden
    ]
    if any(reason.startswith("collapsed") for _, reason in reasons):
        notes.append("Joint columns of a collapsed sampler are never marked.")
    return notes


def distance_notes(table: Table) -> list[str]:
    """What FD-clf and SWD are, where a column has them."""
    said = {
        "fd_clf": "FD-clf: Frechet distance in features of the data set's own classifiers; it is not FID.",
        "swd": "SWD: sliced Wasserstein distance of small patches, which sees texture; no classifier.",
    }
    return [text for key, text in said.items() if any(f".{key}_" in f".{c.key}" for c in table.columns)]


def _has_value(table: Table, key: str) -> bool:
    return any(row.cells[key].state in ("value", "collapsed") for row in table.rows if key in row.cells)


def unfinished_notes(result: Result) -> list[str]:
    """One sentence per run of a row that did not come to an end."""
    notes = []
    for run in result.unfinished:
        status, reason = run.record.get("status", "failed"), run.record.get("reason")
        said = {"done": "has no scores", "skipped": "was skipped", "running": "is still running"}.get(
            str(status), str(status)
        )
        notes.append(f"{run_name(run)} {said}" + (f": {reason}" if reason else "."))
    return notes


def collapse_note(found: list[tuple[Run, float]], runs: int) -> str:
    """How far the collapse went, and in how many of a row's runs."""
    share = max(share for _, share in found)
    return f"one class makes up {share:.0%} of the joint samples in {len(found)} of {runs} runs"


def machine_text(run: Run) -> str:
    """The machine a run was timed on."""
    found = run.record.get("hardware") or {}
    name = str(found.get("name") or found.get("device") or "an unnamed machine")
    if not found.get("cores"):
        return name
    threads = found.get("threads", found["cores"])
    used = f", {threads} thread{'s' * (threads != 1)}" if threads != found["cores"] else ""
    return f"{name}, {found['cores']} cores{used}"
