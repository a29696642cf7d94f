"""Scores a trained method: ties data, judges, draws, probes and costs together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bench.chains import score_chains
from bench.costing import cost_scores
from bench.device import autocast
from bench.encode import encodings
from bench.ex_post import density_samplers, ex_post_draws
from bench.feature_metrics import CLIP_HEADLINES, FID_HEADLINES, apply_to, feature_metric
from bench.generate import BATCH, Usage, chosen_samplers, draws, events, skipped
from bench.names import closest
from bench.randomness import derive, forked
from datasets.spec import Dataset, DataSpec, Split, UserError
from methods.base import Method
from metrics import DRAWN, METRICS
from metrics.attributes import AttributeMetric
from metrics.clustering import clustering_scores
from metrics.coherence import CoherenceMetric
from metrics.fd_clf import fd_clf
from metrics.latent import LatentMetric, probe_rows
from metrics.protocol import EventMetric, Score
from metrics.rows import spread_rows
from metrics.swd import swd
from metrics.weights import Unavailable

if TYPE_CHECKING:
    from bench.config import Plan
    from bench.progress import Reporter

HELD_OUT = 1000
"""Tuples of `val` on which a method may prune its clusters, and test tuples assigned at once."""

LABEL = "digit"
"""The label that coherence is about and for which there are judges."""

HEADLINES: dict[str, dict[str, tuple[str, ...]]] = {
    "coherence": {"joint": ("coherence_joint",), "cross": ("coherence_cross",)},
    "fid": FID_HEADLINES,
    "clip": CLIP_HEADLINES,
    "fd_clf": {"joint": ("fd_clf_uncond",), "cross": ("fd_clf_cond", "fd_clf_cond_cross")},
    "swd": {
        "joint": ("swd_uncond", "swd_fine_uncond"),
        "cross": tuple(
            f"{family}_{kind}" for family in ("swd", "swd_fine") for kind in ("cond", "cond_cross")
        ),
    },
    "latent": {"encode": ("latent_acc",)},
}
"""Metric -> task -> the scores that a table would look for, to be reported even where they cannot be had."""


@dataclass
class Evaluation:
    """All scores of a run. outcomes: cell -> bool `[n]` in test order, for paired statistics. judges: what
    the record says about them, None without. timing: seconds by part. skipped: task -> reason."""

    scores: list[Score]
    outcomes: dict[str, np.ndarray]
    judges: dict[str, Any] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def check_metrics(names: tuple[str, ...]) -> None:
    """Raises UserError for a metric that does not exist, with the closest name that does."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric '{name}'{closest(name, METRICS)}")


def together(missing: tuple[str, ...], planned: tuple[str, ...]) -> tuple[str, ...]:
    """The planned metrics to compute where `missing` ones are: `ex_post` and what scores it go together."""
    if "ex_post" in planned and {*DRAWN, "ex_post"} & set(missing):
        missing = (*missing, *DRAWN, "ex_post")
    return tuple(name for name in planned if name in missing)


def find_judges(data: Dataset, cache: Path, device: torch.device | str = "cpu") -> tuple[Any | None, str]:
    """The classifiers that judge a data set (of its attributes, where it has an oracle for them, else of
    its digits), or None and the reason why there are none."""
    from metrics.attribute_judges import attribute_judges
    from metrics.judges import digit_judges

    test = data.split("test")
    images = {m.name for m in data.spec.images}
    if data.oracle is not None:
        splits = (data.split("train"), data.split("val"), test)
        attributes = data.oracle.attributes
        return attribute_judges(data.spec, attributes, *splits, data.fingerprint, Path(cache), device), ""
    if LABEL not in test.labels:
        return None, f"the data set has no label '{LABEL}' to judge by"
    if len(images) < 2:
        return None, "judging takes at least two image modalities"
    parts = [_restricted(data.split(name), images) for name in ("train", "val")]  # type: ignore[arg-type]
    test = _restricted(test, images)
    official = getattr(data, "official_classifiers", None)
    return digit_judges(test.spec, *parts, test, data.fingerprint, Path(cache), official, device), ""


def coherence_metric(
    data: Dataset, judges: Any, test: Split, device: torch.device | str = "cpu", seed: int = 0
) -> AttributeMetric | CoherenceMetric:
    """The coherence of a data set: of attributes where it has an oracle for them, else of its digits."""
    if data.oracle is not None:
        return AttributeMetric(judges, data.oracle, test, device, seed)
    return CoherenceMetric(judges, test, device, LABEL, seed)


def _restricted(split: Split, names: set[str]) -> Split:
    """The split with only the modalities `names`."""
    if names == set(split.spec.names):
        return split
    return Split(
        DataSpec(tuple(m for m in split.spec if m.name in names)),
        {k: t for k, t in split.stored.items() if k in names},
        split.labels,
        {k: t for k, t in split.groups.items() if k in names},
    )


def evaluate(
    method: Method,
    data: Dataset,
    plan: Plan,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cache: Path,
    batch_size: int = BATCH,
    precision: str = "fp32",
    train_batch: int = 64,
    step_seconds: float | None = None,
    judges: Any | Literal["find"] | None = "find",
    inception: Path | str | None = None,
    clip: Path | str | None = None,
    download: bool = True,
    progress: Reporter | None = None,
) -> Evaluation:
    """Draw and score everything in `plan` on its split (`test`, or `val` while tuning).

    method: trained, on `device` afterwards, in the mode it came in. cache: folder for judges and real
    statistics. train_batch, step_seconds: of the training loop, for the cost. judges: found for the data
    set unless given (None: do without). inception, clip: paths of the weights of `fid` and `clip`;
    download: whether they may be fetched. What cannot be had is a score without value that says why.
    Raises UserError for an unknown metric or sampler, `methods.base.Diverged` for samples that are not
    finite.
    """
    check_metrics(plan.metrics)
    chosen_samplers(method, plan)
    device, began, clock = torch.device(device), time.perf_counter(), _Clock()
    was_training = method.training
    method.to(device).eval()
    test, train = data.split(plan.split), data.split("train")
    result = Evaluation([], {}, timing=clock.seconds, skipped=skipped(method, data.spec))
    try:
        with clock("judges"):
            weights = {"fid": inception, "clip": clip}
            metrics = _event_metrics(
                result, data, plan, test, train, device, Path(cache), judges, weights, download, seed
            )
        usage: list[Usage] = []
        if metrics:
            how: dict[str, Any] = {
                "device": device, "seed": seed, "batch_size": batch_size, "precision": precision
            }  # fmt: skip
            _run_events(result, method, test, train, plan, metrics, usage, clock, progress, **how)
        if "latent" in plan.metrics:
            with clock("latent"), forked(derive(seed, "latent")):
                _run_probes(result, method, train, test, plan, device, precision, batch_size, seed)
        if "clustering" in plan.metrics and "encode" not in result.skipped:
            with clock("clustering"), autocast(device, precision):
                result.scores += _run_clusters(method, data.split("val"), test, device)
        if "chains" in plan.metrics:
            with clock("chains"), forked(derive(seed, "chains")), autocast(device, precision):
                result.scores += score_chains(method, test, device)
        if "cost" in plan.metrics:
            with clock("cost"):
                result.scores += cost_scores(
                    method,
                    train,
                    usage=usage,
                    device=device,
                    precision=precision,
                    samplers=plan.samplers,
                    train_batch=train_batch,
                    step_seconds=step_seconds,
                )
    finally:
        method.train(was_training)
    result.scores += [
        Score(metric, None, 0, "", task=task, unavailable=f"skipped: {reason}")
        for task, reason in result.skipped.items()
        for name in plan.metrics
        for metric in HEADLINES.get(name, {}).get(task, ())
        if apply_to(data.spec, metric)
    ]
    clock.seconds["total_s"] = time.perf_counter() - began
    return result


class _Clock:
    """Seconds spent in named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            key = f"{name}_s"
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start


def _unavailable(result: Evaluation, spec: DataSpec, metric: str, reason: str) -> None:
    """One score without value for every headline of `metric` that this data can have, with the reason."""
    result.scores += [
        Score(name, None, 0, "", task=task, unavailable=reason)
        for task, names in HEADLINES[metric].items()
        if task not in result.skipped
        for name in names
        if apply_to(spec, name)
    ]


def _event_metrics(
    result: Evaluation,
    data: Dataset,
    plan: Plan,
    test: Split,
    train: Split,
    device: torch.device,
    cache: Path,
    judges: Any,
    weights: dict[str, Path | str | None],
    download: bool,
    seed: int,
) -> list[EventMetric]:
    """The metrics of the plan that can be had; the others leave their reason in `result`."""
    wanted = [name for name in DRAWN if name in plan.metrics]
    found: list[EventMetric] = []
    reason = "no judges were given"
    if judges == "find" and ("coherence" in wanted or "fd_clf" in wanted):
        judges, reason = find_judges(data, cache, device)
    if judges is not None and judges != "find":
        result.judges = judges.report() if hasattr(judges, "report") else {"hash": judges.hash}
    common: dict[str, Any] = {
        "fingerprint": data.fingerprint,
        "split": plan.split,
        "cache": cache,
        "device": device,
    }
    for name in wanted:
        try:
            if name in ("fid", "clip"):
                metric = feature_metric(
                    name, data, plan, test, train, cache=cache, device=device,
                    weights=weights, download=download, seed=derive(seed, "intervals"),
                )  # fmt: skip
                found += [metric] if metric is not None else []
            elif name == "swd":
                found.append(swd(test, train, joint=plan.joint, cross=plan.cross, **common))
            elif judges is None:
                _unavailable(result, data.spec, name, reason)
            elif name == "coherence":
                found.append(coherence_metric(data, judges, test, device, derive(seed, "intervals")))
            else:
                found.append(fd_clf(judges, test, train, drawn=plan.joint, **common))
        except (Unavailable, ValueError) as error:
            _unavailable(result, data.spec, name, str(error))
    return found


def _run_events(
    result: Evaluation,
    method: Method,
    test: Split,
    train: Split,
    plan: Plan,
    metrics: list[EventMetric],
    usage: list[Usage],
    clock: _Clock,
    progress: Reporter | None,
    **how: Any,
) -> None:
    from bench.progress import Reporter

    todo = draws(method, plan, len(test))
    densities: dict[str, Any] = {}
    if "ex_post" in plan.metrics:
        with clock("ex_post"):
            densities = density_samplers(method, train, **how)
        todo += ex_post_draws(densities, plan, method.spec)
    reporter = progress or Reporter(quiet=True)
    with reporter.task("scoring", sum(draw.n for draw in todo)) as task, clock("draws"):
        for event in events(method, test, plan, usage=usage, advance=task.advance, only=todo,
                            made=densities, **how):  # fmt: skip
            with torch.no_grad(), clock("metrics"):
                for metric in metrics:
                    metric.update(event)
    with clock("metrics"):
        for metric in metrics:
            result.scores += metric.compute()
            result.outcomes.update(metric.outcomes())
    result.timing["sampling_s"] = sum(u.total_seconds for u in usage)


def _run_probes(
    result: Evaluation,
    method: Method,
    train: Split,
    test: Split,
    plan: Plan,
    device: torch.device,
    precision: str,
    batch_size: int,
    seed: int,
) -> None:
    if "encode" in result.skipped:
        return
    label = LABEL if LABEL in test.labels else next(iter(test.labels), None)
    if label is None:
        return _unavailable(result, method.spec, "latent", "the data set has no labels to probe for")
    metric = LatentMetric(label, seed)
    drawn = probe_rows(len(train), plan.probe_train, plan.probe_repeats, derive(seed, "probe"))
    if plan.probe_full:
        kept, positions = torch.arange(len(train)), drawn
    else:
        unique, inverse = np.unique(np.concatenate(drawn), return_inverse=True)
        kept, positions = torch.from_numpy(unique), np.split(inverse.reshape(-1), len(drawn))
    names = method.spec.names
    for given in [(name,) for name in names] + ([names] if len(names) > 1 else []):
        fitted = encodings(method, train, kept, given, "train", device, precision, batch_size)
        scored = encodings(
            method, test, torch.arange(len(test)), given, "test", device, precision, batch_size
        )
        metric.update(fitted, scored, positions)
        if plan.probe_full:
            metric.update(fitted, scored, [np.arange(len(train))], "full")
    result.scores += metric.compute()
    result.outcomes.update(metric.outcomes())


def _run_clusters(method: Method, val: Split, test: Split, device: torch.device) -> list[Score]:
    """Clustering scores of all test tuples; none for a method without clusters, or data without label."""
    label = LABEL if LABEL in test.labels else next(iter(test.labels), None)
    if label is None:
        return []
    rows = spread_rows(len(val), HELD_OUT).to(next(iter(val.stored.values())).device)
    held_out = {name: t.to(device) for name, t in val.batch(rows).items()}
    found = []
    for start in range(0, len(test), HELD_OUT):
        x = {n: t.to(device) for n, t in test.batch(slice(start, start + HELD_OUT)).items()}
        with torch.no_grad():
            clusters = method.assign(x, held_out)
        if clusters is None:
            return []
        found.append(clusters.cpu())
    return clustering_scores(torch.cat(found).numpy(), test.labels[label].cpu().numpy())
