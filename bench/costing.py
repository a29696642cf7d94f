"""Costs of a method: parameters, overhead, time and evaluations per sample, one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.device import autocast
from bench.generate import Draw, Usage, skipped
from bench.optimise import losses_of, only, stage_groups
from bench.randomness import derive, forked
from bench.sampling_cost import cross_case, draw_call, protocol_scores, sampling
from datasets.spec import Batch, Split, UserError
from methods.base import Method, Progress, Stage
from metrics.cost import (
    cost_score,
    count_flops,
    parameters,
    peak_memory_mb,
    reset_peak,
    sampling_overhead,
    seconds_per_call,
)
from metrics.protocol import Score

STEPS, STEP, EPOCH = 1000, 998, 10
"""Steps of a stage and the one that is measured: after every warm-up, before what ends a stage."""


@dataclass(frozen=True)
class StepCost:
    """One training step, averaged over the stages by their share: FLOPs; seconds (forward and backward,
    without the optimiser; None if not measured); peak memory in MiB."""

    flops: float
    seconds: float | None
    peak_mb: float


def _pass(method: Method, batch: Batch, stage: Stage, precision: str) -> None:
    """Forward and backward as in training, in step `STEP` of `stage`."""
    method.zero_grad(set_to_none=True)
    device = next(iter(batch.values())).device
    for loss in losses_of(method, batch, Progress(stage.name, STEP, STEPS, EPOCH), device, precision):
        loss.total.backward()


@contextmanager
def traceless(method: Method) -> Iterator[None]:
    """Training passes inside leave weights, buffers, gradients, mode and random state as they were."""
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    was_training = method.training
    method.train()
    try:
        with forked(derive(0, "step cost")):
            yield
    finally:
        method.zero_grad(set_to_none=True)
        method.load_state_dict(state)
        method.train(was_training)


def step_cost(
    method: Method,
    batch: Batch,
    precision: str = "fp32",
    timed: bool = False,
    warmup: int = 2,
    repeats: int = 5,
) -> StepCost:
    """Cost of one training step on `batch`; the method is as before afterwards."""
    device = next(iter(batch.values())).device
    flops, seconds = 0.0, 0.0
    reset_peak(device)
    with traceless(method):
        for stage in method.stages:
            with only(method, stage_groups(method, stage).values()):

                def call(stage: Stage = stage) -> None:
                    _pass(method, batch, stage, precision)

                flops += stage.share * count_flops(call)
                if timed:
                    seconds += stage.share * seconds_per_call(call, device, warmup, repeats)
    return StepCost(flops, seconds if timed else None, peak_memory_mb(device))


def stage_seconds(method: Method, batch: Batch, stage: Stage, precision: str) -> float:
    """Seconds of one forward and backward pass in `stage`; the method is as before afterwards."""
    device = next(iter(batch.values())).device
    with traceless(method), only(method, stage_groups(method, stage).values()):
        return seconds_per_call(lambda: _pass(method, batch, stage, precision), device, 1, 1)


def sampling_time(
    method: Method,
    task_call: Callable[[], Any],
    device: torch.device,
    precision: str,
    warmup: int,
    repeats: int,
) -> float:
    """Seconds per call of a sampler in evaluation mode, device synchronised."""
    with sampling(method, device, precision):
        return seconds_per_call(task_call, device, warmup, repeats)


def cost_scores(
    method: Method,
    train: Split,
    *,
    usage: Sequence[Usage] = (),
    device: torch.device,
    precision: str = "fp32",
    samplers: Sequence[str] | None = None,
    train_batch: int = 64,
    step_seconds: float | None = None,
) -> list[Score]:
    """All cost scores.

    `usage`: what `bench.generate.events` measured; where a sampler is missing there, one small draw is
    timed here. `step_seconds`: seconds per step as the training loop measured them; without it, forward
    and backward passes are timed here and the attribute says so.
    """
    method.eval()
    scores = [cost_score("parameters", parameters(method))]
    for sampler, task in sampler_tasks(method, samplers):
        scores += _sampler_scores(method, train, sampler, task, usage, device, precision)
        scores += protocol_scores(method, train, sampler, task, device, precision)
    scores += _training_scores(method, train, device, precision, train_batch, step_seconds)
    return scores


def sampler_tasks(method: Method, samplers: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Every (sampler, task) that the method can draw with on its data; of `samplers` alone where given."""
    missing = skipped(method, method.spec)
    return [
        (sampler, task)
        for sampler, tasks in method.samplers.items()
        for task in ("joint", "cross")
        if task in tasks and task not in missing and (samplers is None or sampler in samplers)
    ]


def overhead(
    method: Method, train: Split, sampler: str, task: str, device: torch.device, precision: str
) -> int:
    """Parameters that the sampler reads beyond encoders and decoders."""
    groups = {name: group.params for name, group in method.param_groups().items()}
    one = draw_call(method, train, sampler, task, 2, reconstruct=False)
    with forked(derive(0, "overhead")), torch.no_grad(), autocast(device, precision):
        return sampling_overhead(groups, one, method.fitted)


def _sampler_scores(
    method: Method,
    train: Split,
    sampler: str,
    task: str,
    usage: Sequence[Usage],
    device: torch.device,
    precision: str,
) -> list[Score]:
    key = {"task": task, "sampler": sampler}
    extra = overhead(method, train, sampler, task, device, precision)
    seen = [u for u in usage if (u.draw.task, u.draw.sampler) == (task, sampler) and len(u.draw.given) < 2]
    if not seen:
        seen = [_timed(method, sampler, task, train, device, precision)]
    seconds = sum(u.seconds for u in seen) / sum(u.tuples for u in seen)
    unit = f"per tuple, batch {min(seen[0].batch_size, seen[0].draw.n)}"
    return [
        cost_score("sampling_time_s", seconds, sum(u.tuples for u in seen), attribute=unit, **key),
        cost_score("nfe", method.nfe(sampler, task), **key),
        cost_score("param_overhead", extra, **key),
    ]


def _timed(
    method: Method, sampler: str, task: str, train: Split, device: torch.device, precision: str
) -> Usage:
    """Usage of one small draw: batch 100, or all there is."""
    n, names = min(100, len(train)), method.spec.names
    call = draw_call(method, train, sampler, task, n)
    seconds = sampling_time(method, call, device, precision, warmup=1, repeats=3)
    given = (cross_case(method.spec)[0],) if task == "cross" else ()
    draw = Draw(task, given, names, sampler, n)  # type: ignore[arg-type]
    return Usage(draw, n, 3 * n, 3, 3 * seconds, 3 * seconds)


def _training_scores(
    method: Method,
    train: Split,
    device: torch.device,
    precision: str,
    train_batch: int,
    step_seconds: float | None,
) -> list[Score]:
    n = min(train_batch, len(train))
    batch = {name: t.to(device) for name, t in train.batch(slice(0, n)).items()}
    names = ("flops_per_step", "train_time_s_per_iter", "peak_memory_mb")
    try:
        cost = step_cost(method, batch, precision, timed=step_seconds is None)
    except (RuntimeError, NotImplementedError, UserError) as error:
        reason = f"a training step could not be repeated for measuring ({error})"
        return [cost_score(name, None, 0, unavailable=reason) for name in names]
    how = "training loop" if step_seconds is not None else "forward and backward"
    seconds = step_seconds if step_seconds is not None else cost.seconds
    where = "training step" if device.type == "cuda" else "process"
    return [
        cost_score("flops_per_step", cost.flops, attribute=f"batch {n}"),
        cost_score("train_time_s_per_iter", seconds, attribute=f"{how}, batch {n}"),
        cost_score("peak_memory_mb", cost.peak_mb, attribute=where),
    ]
