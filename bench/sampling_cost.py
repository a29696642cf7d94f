"""Sampling time by the protocol of METHODS 3.8: batch 100, 3 warm-ups, mean of 10, device synchronised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from bench.device import autocast
from bench.randomness import derive, forked
from datasets.spec import Batch, Split
from methods.base import Method
from metrics.cost import cost_score, timed_call
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
    """Seconds per batch and per sample.

    `joint` draws unconditional tuples, `cross` all others given the first modality. Where the budget pays for
    less, the attribute of the scores says what was done.
    """
    call = draw_call(method, train, sampler, task, SAMPLED, method.spec.names[1:])
    with sampling(method, device, precision):
        timing = timed_call(call, device, BUDGET.get(device.type, BUDGET["cpu"]))
    key = {"task": task, "sampler": sampler, "attribute": f"batch {SAMPLED}, {timing.text}"}
    return [
        cost_score("sampling_batch_s", timing.seconds, timing.repeats, **key),
        cost_score("sampling_sample_s", timing.seconds / SAMPLED, timing.repeats, **key),
    ]


def draw_call(
    method: Method, train: Split, sampler: str, task: str, n: int, targets: Sequence[str] | None = None
) -> Callable[[], Batch]:
    """A call that draws `n` tuples: of all modalities, or `targets` (None: all) given the first one.

    Those given are training tuples, repeated where there are fewer.
    """
    names = method.spec.names
    if task == "joint":
        return lambda: method.joint_generate(n, sampler)
    rows = torch.arange(n) % len(train)
    stored = train.batch(rows.to(next(iter(train.stored.values())).device))
    given = {names[0]: stored[names[0]].to(method.device)}
    return lambda: method.cross_generate(given, targets or names, sampler)
