"""Sampling time by the protocol of METHODS 3.8: batch 100, 3 warm-ups, mean of 10, device synchronised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bench.device import autocast
from bench.randomness import derive, forked
from datasets.spec import Batch, DataSpec, Split
from methods.base import Method
from metrics.cost import cost_score, peak_call_mb, timed_call
from metrics.protocol import Score

SAMPLED = 100
"""Tuples in a batch whose sampling is timed."""

BUDGET = {"cuda": 600.0, "cpu": 10.0}
"""Seconds that timing one sampler may take, by kind of device; a processor that does less repeats less."""


@contextmanager
def sampling(method: Method, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode and random numbers of its own; mode and random state are as before afterwards."""
    was_training = method.training
    method.eval()
    try:
        with forked(derive(0, "sampling time")), torch.no_grad(), autocast(device, precision):
            yield
    finally:
        method.train(was_training)


def protocol_scores(
    method: Method, train: Split, sampler: str, task: str, device: torch.device, precision: str
) -> list[Score]:
    """Seconds per batch and per sample, and the memory that a batch takes.

    `joint` draws unconditional tuples, `cross` what `cross_case` says. Where the budget pays for less, the
    attribute of the scores says what was done.
    """
    call = draw_call(method, train, sampler, task, SAMPLED, reconstruct=False)
    with sampling(method, device, precision):
        timing = timed_call(call, device, BUDGET.get(device.type, BUDGET["cpu"]))
        peak = peak_call_mb(call, method, device)
    given = f", given {cross_case(method.spec)[0]}" if task == "cross" else ""
    key = {"task": task, "sampler": sampler}
    timed = {**key, "attribute": f"batch {SAMPLED}, {timing.text}{given}"}
    return [
        cost_score("sampling_batch_s", timing.seconds, timing.repeats, **timed),
        cost_score("sampling_sample_s", timing.seconds / SAMPLED, timing.repeats, **timed),
        cost_score("peak_memory_mb", peak, attribute=f"sampling, batch {SAMPLED}{given}", **key),
    ]


def cross_case(spec: DataSpec) -> tuple[str, tuple[str, ...]]:
    """What is given and what is drawn when conditional samples are timed: the first modality, all others.

    Of pictures and captions the caption is given, the direction that the papers' tables are about.
    """
    given = spec.texts[0].name if spec.texts and spec.images else spec.names[0]
    return given, tuple(name for name in spec.names if name != given)


def draw_call(
    method: Method, train: Split, sampler: str, task: str, n: int, reconstruct: bool = True
) -> Callable[[], Batch]:
    """A call that draws `n` tuples: of all modalities, or given one of them (`cross_case`).

    reconstruct: whether the one that is given is drawn too. Those given are training tuples, repeated where
    there are fewer.
    """
    if task == "joint":
        return lambda: method.joint_generate(n, sampler)
    name, others = cross_case(method.spec)
    rows = torch.arange(n) % len(train)
    stored = train.batch(rows.to(next(iter(train.stored.values())).device))
    given = {name: stored[name].to(method.device)}
    return lambda: method.cross_generate(given, method.spec.names if reconstruct else others, sampler)
