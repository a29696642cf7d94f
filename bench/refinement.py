"""What more or fewer revision steps at test time are worth: coherence and FD-clf against their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.config import Plan, RunConfig
from bench.errors import UsageError
from bench.evaluate import coherence_metric, find_judges
from bench.generate import Draw, Usage, events
from bench.progress import Reporter
from bench.randomness import derive
from bench.safefiles import read_json, write_json
from bench.store import REFINEMENT
from datasets.spec import Dataset, UserError
from methods.base import Method
from metrics import METRIC_VERSION
from metrics.fd_clf import fd_clf
from metrics.protocol import Score

STEPS = (0, 5, 10, 20, 30, 60, 120)
"""Lengths of the chains that are compared; 0 is the first draw, unrevised."""
MEASURES = ("coherence_joint", "coherence_cross", "fd_clf_uncond", "fd_clf_cond_cross")


def refining_samplers(method: Method) -> dict[str, tuple[str, ...]]:
    """Sampler -> tasks of those whose cost grows with the number of steps."""
    found = {}
    for name, tasks in method.samplers.items():
        grows = tuple(
            t for t in tasks if t in ("joint", "cross") and method.nfe(name, t, 7) > method.nfe(name, t, 3)
        )
        if grows:
            found[name] = grows
    return found


def refinement_draws(method: Method, plan: Plan, available: int, steps: Iterable[int]) -> list[Draw]:
    """Unconditional draws, and those from every single modality to all others, for every number of steps.

    As many as the plan says, at most `available` conditional ones.
    """
    names, out, cross = method.spec.names, [], min(plan.cross, available)
    for sampler, tasks in refining_samplers(method).items():
        for count in steps:
            if "joint" in tasks:
                out.append(Draw("joint", (), names, sampler, plan.joint, count, paired=True))
            if "cross" in tasks:
                others = [((name,), tuple(m for m in names if m != name)) for name in names]
                out += [Draw("cross", g, to, sampler, cross, count, paired=True) for g, to in others if to]
    return out


def measure_refinement(
    method: Method,
    data: Dataset,
    config: RunConfig,
    cache: Path,
    reporter: Reporter,
    steps: Sequence[int] = STEPS,
) -> list[dict[str, Any]]:
    """One entry per (measure, sampler, steps): value, 95 % interval, n, seconds and evaluations per sample.

    Drawn from the seed and scored on the split of the run. Raises UsageError for a method without a sampler
    that revises, UserError where the data set has no judges.
    """
    test, train = data.split(config.plan.split), data.split("train")
    todo = refinement_draws(method, config.plan, len(test), steps)
    if not todo:
        raise UsageError(f"{config.method} has no sampler that revises by steps; try one of `ours`")
    judges, reason = find_judges(data, cache, method.device)
    if judges is None:
        raise UserError(f"quality against steps needs the data set's judges: {reason}")
    place = {"fingerprint": data.fingerprint, "split": config.plan.split, "cache": cache}
    metrics = [
        coherence_metric(data, judges, test, method.device, derive(config.seed, "intervals")),
        fd_clf(judges, test, train, drawn=config.plan.joint, device=method.device, **place),
    ]
    usage: list[Usage] = []
    how = {"device": method.device, "seed": config.seed, "precision": config.train.precision}
    with reporter.task("drawing", sum(d.n for d in todo)) as task:
        drawn = events(method, test, config.plan, only=todo, usage=usage, advance=task.advance, **how)
        for event in drawn:
            with torch.no_grad():
                for metric in metrics:
                    metric.update(event)
    scores = [score for metric in metrics for score in metric.compute()]
    return [_entry(score, method, usage) for score in scores if _averaged(score)]


def _averaged(score: Score) -> bool:
    whole = not score.given and not score.attribute and (not score.target or "+" in score.target)
    return score.metric in MEASURES and score.steps is not None and score.value is not None and whole


def _entry(score: Score, method: Method, usage: Sequence[Usage]) -> dict[str, Any]:
    key = (score.task, score.sampler, score.steps)
    same = [u for u in usage if (u.draw.task, u.draw.sampler, u.draw.steps) == key]
    return {
        "measure": score.metric,
        "task": score.task,
        "sampler": score.sampler,
        "steps": score.steps,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n": score.n,
        "judge": score.judge,
        "seconds": sum(u.seconds for u in same) / max(1, sum(u.tuples for u in same)),
        "nfe": method.nfe(score.sampler, score.task, score.steps),
    }


def keep(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write what was measured beside the run's record."""
    write_json(folder / REFINEMENT, {"metric_version": METRIC_VERSION, "entries": list(entries)})


def kept(folder: Path) -> list[dict[str, Any]] | None:
    """What was measured before, None where nothing was, or by another version of the metrics."""
    path = folder / REFINEMENT
    if not path.exists():
        return None
    found = read_json(path)
    return found["entries"] if found.get("metric_version", METRIC_VERSION) == METRIC_VERSION else None
