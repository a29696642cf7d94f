"""The columns of a comparison table: which score fills each, and which of them a group of runs has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.cells import Column
from bench.summary import Group, Query
from metrics.protocol import Score


@dataclass(frozen=True)
class Measure:
    """A measured column: which score fills it. `per_sampler`: the value depends on the sampler."""

    column: Column
    query: Query
    per_sampler: bool = True


IMAGES = ("fd_clf", "swd", "fid", "kid", "precision", "recall", "clip")
"""Beginnings of scores that compare drawn images with real ones, or with their captions."""


def _measure(
    metric: str,
    title: str,
    better: str,
    style: str,
    task: str = "",
    group: str = "",
    attribute: tuple[str, ...] = (),
    key: str = "",
) -> Measure:
    group = group or ("images" if metric.startswith(IMAGES) else "quality")
    column = Column(key or metric, title, better, style, group)  # type: ignore[arg-type]
    return Measure(column, Query(metric, task, attribute), per_sampler=bool(task))


MEASURES: tuple[Measure, ...] = (
    _measure("coherence_joint", "joint coherence", "higher", "fraction", "joint"),
    _measure("coherence_cross", "cross coherence", "higher", "fraction", "cross"),
    _measure(
        "coherence_cross_n", "cross coherence", "higher", "fraction", "cross", key="coherence_cross_most"
    ),
    _measure("attribute_joint", "attributes joint", "higher", "fraction", "joint"),
    _measure("attribute_cross", "attributes cross", "higher", "fraction", "cross"),
    _measure("latent_acc", "latent accuracy", "higher", "fraction", attribute=("500", "z")),
    _measure("fd_clf_uncond", "FD-clf joint", "lower", "distance", "joint"),
    _measure("fd_clf_cond_cross", "FD-clf cross", "lower", "distance", "cross"),
    _measure("swd_uncond", "SWD joint", "lower", "distance", "joint"),
    _measure("swd_cond_cross", "SWD cross", "lower", "distance", "cross"),
    _measure("fid_uncond", "FID joint", "lower", "distance", "joint"),
    _measure("fid_cond_cross", "FID cross", "lower", "distance", "cross"),
    _measure("fid_t2i", "FID T2I", "lower", "distance", "cross"),
    _measure("kid_uncond", "KID joint", "lower", "fraction", "joint"),
    _measure("kid_cond_cross", "KID cross", "lower", "fraction", "cross"),
    _measure("precision_uncond", "precision joint", "higher", "fraction", "joint"),
    _measure("precision_cond_cross", "precision cross", "higher", "fraction", "cross"),
    _measure("recall_uncond", "recall joint", "higher", "fraction", "joint"),
    _measure("recall_cond_cross", "recall cross", "higher", "fraction", "cross"),
    _measure("clip_uncond", "CLIP joint", "higher", "fraction", "joint"),
    _measure("clip_t2i", "CLIP T2I", "higher", "fraction", "cross"),
    _measure("clip_i2t", "CLIP I2T", "higher", "fraction", "cross"),
    _measure("parameters", "parameters", "", "count", group="cost"),
    _measure("param_overhead", "overhead", "lower", "count", "joint", group="cost"),
    _measure("nfe", "NFE joint", "lower", "plain", "joint", group="cost"),
    _measure("sampling_time_s", "s/sample joint", "lower", "seconds", "joint", group="cost"),
    _measure("nfe", "NFE cross", "lower", "plain", "cross", group="cost", key="nfe_cross"),
    _measure(
        "sampling_time_s", "s/sample cross", "lower", "seconds", "cross", group="cost", key="sampling_cross_s"
    ),
    _measure(
        "peak_memory_mb", "MB joint", "lower", "seconds", "joint", group="cost", attribute=("sampling",)
    ),
    _measure("train_time_s_per_iter", "s/step", "lower", "seconds", group="cost"),
)
"""Columns of a comparison table, in order; one is shown if any run of the group has a score for it."""


def shown_measures(group: Group) -> list[Measure]:
    """The measures that any finished run of the group has a score for."""
    shown = []
    captioned = any(s.metric == "fid_t2i" for run in group.runs for s in run.scores)
    for measure in MEASURES:
        if captioned and measure.query.metric == "fid_cond_cross":
            continue  # with one picture and one caption it is fid_t2i
        scores = [s for run in group.runs for s in run.scores if s.metric == measure.query.metric]
        if not scores:
            continue
        per_sampler = any(score.sampler for score in scores)
        query = measure.query
        if measure.column.key == "latent_acc":
            query = replace(query, attribute=(probe_size(group.key.plan), "z"))
        column = measure.column
        if column.key == "coherence_cross_most":
            most = most_given(scores)
            if most < 2:
                continue
            query = replace(query, attribute=(f"n_given={most}",))
            column = replace(column, title=f"{column.title}, {most} given")
        shown.append(replace(measure, column=column, query=query, per_sampler=per_sampler))
    return shown


def most_given(scores: Iterable[Score]) -> int:
    """The largest number of given modalities among scores by that number; 0 of none."""
    found = (re.search(r"n_given=(\d+)", score.attribute) for score in scores)
    return max((int(match[1]) for match in found if match), default=0)


def probe_size(plan: str) -> str:
    """Training examples of the small probe, as the attribute of its scores names them."""
    return str(json.loads(plan or "{}").get("probe_train", 500))
