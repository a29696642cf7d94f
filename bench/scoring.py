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
from bench.feature_metrics import feature_metric
from bench.progress import Reporter
from bench.randomness import derive, forked
from bench.store import RunFolder
from datasets.spec import Batch, Dataset, UserError
from methods.base import Method
from metrics import METRIC_VERSION
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
        **_weights(options),
    )


def _weights(options: Options) -> dict[str, Path | str | None]:
    """Paths of the weights of published networks, by option or environment."""
    named = {"inception": options.inception, "clip": options.clip}
    return {name: path or os.environ.get(f"BENCH_{name.upper()}") or None for name, path in named.items()}


def unobtainable(names: Sequence[str], data: Dataset, plan: Plan, options: Options) -> dict[str, str]:
    """Metric -> why it cannot be had here, of those `names` that need weights of a published network."""
    given = _weights(options)
    weights = {"fid": given["inception"], "clip": given["clip"]}
    test, train = data.split(plan.split), data.split("train")
    found = {}
    for name in (name for name in names if name in weights):
        try:
            feature_metric(
                name, data, plan, test, train, cache=options.cache, device=torch.device("cpu"),
                weights=weights, download=options.download, seed=0,
            )  # fmt: skip
        except (Unavailable, ValueError) as error:
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
