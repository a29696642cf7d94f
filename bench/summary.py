"""From run records to comparable groups, rows and estimates: what may stand in one table, and what may not.

A group holds runs of one data set with one data fingerprint, preset, training budget (where the preset
gives all methods the same), metric version, evaluation plan and judge. Within a group a row is one method
with one set of overrides; its runs differ in the seed alone.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from bench.config import NEUTRAL
from bench.names import EX_POST
from metrics.protocol import COLLAPSED, Score

COMMON_BUDGET = ("quick", "fair", "fair-compute")
"""Presets that give every method the same budget; in others each method has its own."""


class Run(Protocol):
    """What this module needs of `bench.store.RunRecord`."""

    @property
    def folder(self) -> Path: ...
    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def scores(self) -> list[Score]: ...
    @property
    def outcomes(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Key:
    """What all runs of one group share. Blank fields of a run without scores match anything."""

    dataset: str
    fingerprint: str
    preset: str
    metric_version: str
    plan: str
    judge: str
    budget: str = ""

    def admits(self, other: Key) -> bool:
        """Whether a run with key `other`, some of it unknown, may be listed in this group."""
        if (self.dataset, self.preset) != (other.dataset, other.preset):
            return False
        names = ("fingerprint", "metric_version", "plan", "judge", "budget")
        return all(getattr(other, name) in ("", getattr(self, name)) for name in names)

    def differences(self, other: Key) -> list[str]:
        """Names of the fields in which two keys differ, blanks left out."""
        names = ("fingerprint", "preset", "metric_version", "plan", "judge", "budget")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [name for name, mine, theirs in pairs if mine != theirs and theirs]


@dataclass
class Result:
    """All runs of one method with one set of overrides in one group, one per seed, in seed order."""

    method: str
    overrides: str
    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.method} [{self.overrides}]" if self.overrides else self.method

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(int(run.record.get("seed", 0)) for run in self.runs))

    @property
    def samplers(self) -> list[str]:
        """Names of the method's samplers that were scored, the default first."""
        scores = [s for run in self.runs for s in run.scores if s.task in ("joint", "cross")]
        return list(dict.fromkeys(s.sampler for s in scores if s.sampler and s.sampler not in EX_POST))


@dataclass
class Group:
    """Comparable runs, their rows, and what fell out of them: (run, reason)."""

    key: Key
    results: list[Result]
    dropped: list[tuple[Run, str]]

    @property
    def runs(self) -> list[Run]:
        return [run for result in self.results for run in result.runs]

    @property
    def rank(self) -> tuple[int, int, str]:
        """Completeness: methods without overrides, then runs, then the latest end of a run."""
        plain = {result.method for result in self.results if result.runs and not result.overrides}
        return len(plain), len(self.runs), max((finished(run) for run in self.runs), default="")


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with a 95 % interval; one seed: that seed's interval over examples."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: tuple[int, ...] = ()
    seeds: int = 0
    judges: frozenset[str] = frozenset()
    unavailable: str = ""
    values: tuple[float, ...] = ()


def canonical(value: Any) -> str:
    """JSON that is equal for equal content."""
    return json.dumps(value, sort_keys=True, default=str)


def finished(run: Run) -> str:
    return str(run.record.get("finished") or run.record.get("started") or "")


def read_meta(run: Run) -> dict[str, Any]:
    """`metric_version` and `plan` of a run's scores; empty where it has none."""
    meta = getattr(run, "meta", None)
    if isinstance(meta, Mapping) and meta:
        return dict(meta)
    try:
        raw = json.loads((Path(run.folder) / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: raw[key] for key in ("metric_version", "plan") if key in raw}


def judge_hash(run: Run) -> str:
    """Hash of the classifiers that judged a run: from its record, else from its coherence scores."""
    judges = run.record.get("judges") or {}
    if judges.get("hash"):
        return str(judges["hash"])
    return "+".join(sorted({s.judge for s in run.scores if s.metric.startswith("coherence") and s.judge}))


def key_of(run: Run) -> Key:
    """The group a run belongs to."""
    record, meta = run.record, read_meta(run)
    plan = dict(meta.get("plan") or (record.get("config") or {}).get("plan") or {})
    plan.pop("metrics", None)  # which metrics were computed changes none of them
    return Key(
        dataset=str(record.get("dataset", "")),
        fingerprint=str((record.get("data") or {}).get("fingerprint") or ""),
        preset=str(record.get("preset", "")),
        metric_version=str(meta.get("metric_version", "")),
        plan=canonical(plan) if plan else "",
        judge=judge_hash(run),
        budget=budget_text(run),
    )


def budget_text(run: Run) -> str:
    """What a preset lets every method spend: FLOPs, or batch size times steps.

    Blank where a preset sets it method by method, and where the user changed it: such a run has a row of
    its own beside the others.
    """
    record = run.record
    train = (record.get("config") or {}).get("train") or {}
    names = ("batch_size", "steps", "flops")
    changed = any(f"train.{name}" in (record.get("overrides") or {}) for name in names)
    if record.get("preset") not in COMMON_BUDGET or changed or not train:
        return ""
    if train.get("flops"):
        return f"{train['flops']:g} FLOPs"
    return f"{train.get('batch_size')} x {train.get('steps')} examples"


def given(run: Run) -> dict[str, Any]:
    """What the user changed, apart from the plan (which makes another group)."""
    overrides = run.record.get("overrides") or {}
    kept = {
        str(name): value
        for name, value in sorted(overrides.items())
        if not str(name).startswith("plan.") and str(name).removeprefix("train.") not in NEUTRAL
    }
    if (run.record.get("config") or {}).get("init_from"):
        kept["init_from"] = "given"
    return kept


def overrides_text(run: Run) -> str:
    """`beta=2.5, train.steps=10`: what the user changed."""
    return settings_text(given(run))


def settings_text(settings: Mapping[str, Any]) -> str:
    """`beta=2.5, train.steps=10`, sorted by name."""
    return ", ".join(f"{name}={_short(value)}" for name, value in sorted(settings.items()))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def groups(records: Iterable[Run]) -> list[Group]:
    """All groups, the most complete first. A run of which two copies exist counts once."""
    unique: dict[str, Run] = {}
    for run in records:
        identity = str(run.record.get("run_id") or run.folder)
        if identity not in unique or finished(run) > finished(unique[identity]):
            unique[identity] = run
    keyed: dict[Key, list[Run]] = {}
    waiting: list[Run] = []
    for run in unique.values():
        key = key_of(run)
        known = key.budget or key.preset not in COMMON_BUDGET
        if run.record.get("status") == "done" and run.scores and known:
            keyed.setdefault(key, []).append(run)
        else:
            waiting.append(run)
    for run in waiting:
        key = key_of(run)
        homes = [existing for existing in keyed if existing.admits(key)] or [key]
        for home in homes:
            keyed.setdefault(home, []).append(run)
    found = [Group(key, *_results(runs)) for key, runs in keyed.items()]
    return sorted(found, key=lambda group: group.rank, reverse=True)


def _results(runs: list[Run]) -> tuple[list[Result], list[tuple[Run, str]]]:
    """Rows of one group, and the runs that an average over seeds must not hold."""
    labelled: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        name = (str(run.record.get("method", "")), overrides_text(run))
        labelled.setdefault(name, {}).setdefault(str(run.record.get("precision") or ""), []).append(run)
    results: list[Result] = []
    dropped: list[tuple[Run, str]] = []
    for (method, overrides), by_precision in labelled.items():
        for precision, members in by_precision.items():
            parts = [overrides] if overrides else []
            if len(by_precision) > 1 and precision and "precision" not in overrides:
                parts.append(f"precision={precision}")
            kept, out = _one_configuration(members)
            dropped += out
            done = [run for run in kept if run.record.get("status") == "done" and run.scores]
            rest = [run for run in kept if run not in done]
            results.append(Result(method, ", ".join(parts), done, rest))
    return results, dropped


def _one_configuration(runs: list[Run]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Of runs under one label, those of the latest configuration, one per seed; the others with a reason."""

    def settings(run: Run) -> dict[str, Any]:
        config = run.record.get("config") or {}
        train = {k: v for k, v in (config.get("train") or {}).items() if k not in NEUTRAL}
        # A record that is older than a hyper-parameter was made with what is now its default.
        hyper = {**defaults(str(run.record.get("method", ""))), **(config.get("hyper") or {})}
        return {"hyper": hyper, "train": train}

    newest_first = sorted(runs, key=lambda r: (r.record.get("status") == "done", finished(r)), reverse=True)
    current = settings(newest_first[0])
    kept: dict[int, Run] = {}
    dropped: list[tuple[Run, str]] = []
    for run in newest_first:
        seed = int(run.record.get("seed") or 0)
        if settings(run) != current:
            changed = ", ".join(changed_keys(settings(run), current)) or "settings"
            dropped.append((run, f"an older configuration of this preset ({changed})"))
        elif seed in kept:
            dropped.append((run, "the same seed was run again later"))
        else:
            kept[seed] = run
    return [kept[seed] for seed in sorted(kept)], dropped


@cache
def defaults(method: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their defaults, as JSON holds them; none if it is not here."""
    from bench.config import hyper_signature, plain
    from datasets.spec import UserError

    try:
        signature = hyper_signature(method)
    except UserError:
        return {}
    return {k: plain(p.default) for k, p in signature.items() if p.default is not p.empty}


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two nested mappings."""
    names: list[str] = []
    for key in sorted({*old, *new}, key=str):
        mine, theirs = old.get(key), new.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            names += changed_keys(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs:
            names.append(f"{prefix}{key}")
    return names


@dataclass(frozen=True)
class Query:
    """Which score of a run: the average over cells of a metric, for a task and sampler.

    attribute: words that the score's attribute must all hold (`n_given=2`, `500`); avoid: words it must
    not hold. Words are separated by anything but letters, digits, `_`, `=`, `.` and `+`. given, target: of
    one cell instead of the average. An average over some of the modalities names them joined by `+` and
    counts as an average.
    """

    metric: str
    task: str = ""
    attribute: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    given: str = ""
    target: str = ""
    steps: int | None = None

    def find(self, run: Run, sampler: str = "") -> Score | None:
        """The one score of `run` that answers, or None. Of several the one with the shortest attribute."""
        found = [s for s in run.scores if self._answers(s, sampler)]
        return min(found, key=lambda s: len(words(s.attribute)), default=None)

    def _answers(self, score: Score, sampler: str) -> bool:
        held = set(words(score.attribute))
        return (
            score.metric == self.metric
            and (score.target == self.target or self.target == "" and "+" in score.target)
            and score.given == self.given
            and (not self.task or score.task in ("", self.task))
            and (not sampler or score.sampler in ("", sampler))
            and (self.steps is None or score.steps == self.steps)
            and held.issuperset(self.attribute)
            and held.isdisjoint(self.avoid)
        )


def words(attribute: str) -> list[str]:
    return [word for word in re.split(r"[^\w=.+]+", attribute) if word]


def estimate(runs: Sequence[Run], find: Callable[[Run], Score | None]) -> Estimate | None:
    """Mean over the runs of the score that `find` picks; None if no run has such a score.

    Interval: Student's t over seeds from two seeds on, mean ± t(0.975, k-1) s / sqrt(k); with one seed the
    interval over examples that the score brings along.
    """
    scores = [score for score in map(find, runs) if score is not None]
    if not scores:
        return None
    known = [score for score in scores if score.value is not None]
    if not known:
        return Estimate(None, unavailable=next((s.unavailable for s in scores if s.unavailable), "no value"))
    values = [float(score.value) for score in known if score.value is not None]
    base = Estimate(
        value=statistics.fmean(values),
        n=tuple(score.n for score in known),
        seeds=len(values),
        judges=frozenset(score.judge for score in known),
        values=tuple(values),
    )
    if len(values) == 1:
        return replace(base, low=known[0].low, high=known[0].high)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return replace(base, low=base.value - half, high=base.value + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` degrees of freedom."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, freedom))


def largest_share(run: Run, sampler: str) -> float | None:
    """Largest share of one predicted class among the joint samples of a sampler, None if not scored."""
    found = [
        score.value
        for score in run.scores
        if score.metric == "largest_share"
        and score.task in ("", "joint")
        and not score.attribute
        and score.sampler in ("", sampler)
        and score.value is not None
    ]
    return max(found, default=None)


def collapsed_runs(runs: Iterable[Run], sampler: str) -> list[tuple[Run, float]]:
    """The runs whose sampler collapsed, with the share."""
    shares = [(run, largest_share(run, sampler)) for run in runs]
    return [(run, share) for run, share in shares if share is not None and share > COLLAPSED]
