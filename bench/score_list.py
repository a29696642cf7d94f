"""`bench scores`: the scores of finished runs as they stand in their records, one a line.

Tables average over seeds and show a choice of columns; here a reader finds what is behind them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from bench.errors import UsageError
from bench.listing import columns
from bench.store import RunRecord, read_log
from bench.summary import settings_text

RUN = ("method", "dataset", "preset", "seed", "overrides", "run")
SCORE = ("metric", "task", "sampler", "steps", "given", "target", "attribute", "value", "low", "high", "n")

Line = dict[str, Any]


def score_lines(
    records: Iterable[RunRecord],
    metrics: Sequence[str] = (),
    methods: Sequence[str] = (),
    dataset: str | None = None,
    preset: str | None = None,
    details: bool = False,
) -> list[Line]:
    """Every score that fits, and the seconds of training as metric `train_s`; low and high: 95 % interval.

    metrics, methods: patterns such as `swd_*` or `ours*`, any of which must fit; none: all. details: also
    scores without a value and those of single modalities, subsets and attributes, and the terms in the last
    line of training in the log, as metric `train.<term>` (means over the steps since the line before).
    Raises UsageError where nothing fits.
    """
    lines = []
    for run in records:
        about = _about(run)
        if run.record.get("status") != "done" or not _fits(about["method"], methods):
            continue
        if dataset not in (None, about["dataset"]) or preset not in (None, about["preset"]):
            continue
        found = [line for line in _scores(run) if details or not (_is_detail(line) or line["value"] is None)]
        found += _last_terms(run) if details else []
        lines += [about | line for line in found if _fits(line["metric"], metrics)]
    if not lines:
        raise UsageError(
            "no finished run has such an average; `bench scores` prints those of all runs, `bench scores "
            "--details` also scores of single modalities, subsets and probes, such as latent_acc"
        )
    order = ("dataset", "preset", "method", "overrides", "seed")
    return sorted(lines, key=lambda line: tuple(line[key] for key in order))  # the order of a record stays


def scores_text(lines: Sequence[Line], style: str) -> str:
    """`terminal`: aligned columns, numbers with five digits; `csv`: all digits."""
    names = (*RUN, *SCORE)
    if style == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue().rstrip("\n")
    rows = [[_short(line[name]) for name in names] for line in lines]
    used = [i for i in range(len(names)) if any(row[i] for row in rows)]
    return columns([[row[i] for i in used] for row in [list(names), *rows]])


def _about(run: RunRecord) -> Line:
    record = run.record
    about = {key: str(record.get(key, "")) for key in ("method", "dataset", "preset")}
    # Those of the plan too, which tables leave out: scores on `val` must not look like scores on `test`.
    changed = settings_text(record.get("overrides") or {})
    return {**about, "seed": int(record.get("seed", 0)), "overrides": changed, "run": run.folder.name}


def _scores(run: RunRecord) -> Iterator[Line]:
    for score in run.scores:
        yield {name: getattr(score, name) for name in SCORE}
    seconds = (run.record.get("timing") or {}).get("train_s")
    if seconds is not None:
        yield _line("train_s", seconds)


def _last_terms(run: RunRecord) -> list[Line]:
    last = [entry for entry in read_log(run.folder) if entry.get("kind") == "train"][-1:]
    return [_line(f"train.{name}", value) for entry in last for name, value in entry["terms"].items()]


def _line(metric: str, value: float) -> Line:
    return {**dict.fromkeys(SCORE, ""), "metric": metric, "value": value}


def _is_detail(line: Line) -> bool:
    return bool(line["given"] or line["target"] or line["attribute"])


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
