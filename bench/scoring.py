"""Scoring a trained method the way every run is scored: evaluation, merging of scores, the sample grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.config import Plan, RunConfig
from bench.device import autocast
from bench.evaluate import Evaluation, evaluate
from bench.progress import Reporter
from bench.randomness import derive, forked
from bench.store import RunFolder
from datasets.spec import Batch, Dataset, UserError
from methods.base import Method
from metrics import METRIC_VERSION, clip, fid
from metrics.weights import Unavailable

if TYPE_CHECKING:
    from bench.job import Options

GRID_COLUMNS = 10


def score(
    method: Method,
    data: Dataset,
    plan: Plan,
    config: RunConfig,
    device: torch.device,
    options: Options,
    reporter: Reporter,
    step_seconds: float | None = None,
) -> Evaluation:
    """Evaluate a trained method the way every run is evaluated."""
    named = {"inception": options.inception, "clip": options.clip}
    weights = {k: path or os.environ.get(f"BENCH_{k.upper()}") or None for k, path in named.items()}
    return evaluate(
        method,
        data,
        plan,
        seed=derive(config.seed, "evaluate"),
        device=device,
        cache=options.cache,
        precision=config.train.precision,
        train_batch=config.train.batch_size,
        step_seconds=step_seconds,
        download=options.download,
        progress=reporter,
        **weights,
    )


def unobtainable(names: Sequence[str], options: Options) -> dict[str, str]:
    """Metric (`fid`, `clip`) -> why the weights of its published network cannot be had here."""
    published = {"fid": (fid.WEIGHTS, options.inception), "clip": (clip.WEIGHTS, options.clip)}
    found = {}
    for name in names:
        weights, path = published[name]
        try:
            weights.find(path, options.download)
        except Unavailable as error:
            found[name] = str(error)
    return found


def add_scores(folder: RunFolder, found: Evaluation, plan: Plan) -> None:
    """Put new scores in place of those of the same name; the others stay."""
    fresh = {s.metric for s in found.scores}
    try:
        before, meta = folder.read_scores()
    except UserError:
        before, meta = [], {}
    kept = (
        [s for s in before if s.metric not in fresh] if meta.get("metric_version") == METRIC_VERSION else []
    )
    folder.write_outcomes(found.outcomes)
    folder.write_scores([*kept, *found.scores], {"metric_version": METRIC_VERSION, "plan": plan.identity()})


def draw_grid(method: Method, data: Dataset, config: RunConfig, path: Path) -> None:
    """The run's grid.png: unconditional tuples by the first sampler; none where there are no such tuples."""
    if type(method).unsupported(data.spec, "joint") is not None:
        return
    device = method.device
    method.eval()
    with forked(derive(config.seed, "grid")), torch.no_grad(), autocast(device, config.train.precision):
        batch = method.joint_generate(GRID_COLUMNS)
    save_grid(batch, path, data)


def save_grid(batch: Batch, path: Path, data: Dataset) -> Path:
    """Write a picture of a batch, rows modalities, columns tuples, captions in words; returns the file."""
    from bench.grids import sample_grid

    whole = {k: t.detach().float() if t.is_floating_point() else t.detach() for k, t in batch.items()}
    return sample_grid({k: t.cpu() for k, t in whole.items()}, path, data.sentence)
