"""Draws every (given -> targets, sampler) once, batch by batch, and measures what it costs.

Generation is the expensive part of an evaluation, so each draw is made once and its events feed every
metric. At most one batch is held at a time. What is drawn depends on the seed, the draw's own name and the
batch size only, never on which other draws are made or in which order.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bench.device import autocast, synchronize
from bench.randomness import derive, forked
from datasets.spec import Batch, DataSpec, Split, UserError
from methods.base import Diverged, Method
from metrics.protocol import Event
from metrics.rows import spread_rows

if TYPE_CHECKING:
    from bench.config import Plan

BATCH = 250
"""Default number of tuples drawn at once. It is part of what fixes the samples, so it is not adapted."""


@dataclass(frozen=True)
class Draw:
    """One thing to draw: `n` tuples of `targets` given `given` (empty: unconditionally) with `sampler`.

    paired: draws that differ in `steps` alone begin with the same random numbers.
    """

    task: Literal["joint", "cross"]
    given: tuple[str, ...]
    targets: tuple[str, ...]
    sampler: str
    n: int
    steps: int | None = None
    paired: bool = False

    @property
    def label(self) -> str:
        """For people: `ebm, m0+m1 given`."""
        return f"{self.sampler}, {'+'.join(self.given) or 'nothing'} given"

    @property
    def name(self) -> str:
        """For seeds: everything that tells this draw from the others of a run, but not how many."""
        steps = "any" if self.paired else self.steps
        return f"{self.task}|{'+'.join(self.given)}|{'+'.join(self.targets)}|{self.sampler}|{steps}"


@dataclass
class Usage:
    """What one draw cost. `seconds` and `batches` leave out the first batch where there are several, which
    pays for warming up; `tuples` are those in `seconds`."""

    draw: Draw
    batch_size: int
    tuples: int = 0
    batches: int = 0
    seconds: float = 0.0
    total_seconds: float = 0.0
    _first: list[float] = field(default_factory=list)

    def add(self, tuples: int, seconds: float) -> None:
        if self.batches == 1 and not self._first:
            self._first, self.tuples, self.batches, self.seconds = [self.seconds], 0, 0, 0.0
        self.tuples, self.batches = self.tuples + tuples, self.batches + 1
        self.seconds, self.total_seconds = self.seconds + seconds, self.total_seconds + seconds


def subsets(names: Sequence[str], kind: str) -> list[tuple[str, ...]]:
    """Given subsets of a plan: every single; `nested` adds the chain {first}, {first, second}, ...; `all`
    adds every larger subset. The full set is never among them, as it leaves nothing to generate."""
    found = [(name,) for name in names]
    sizes = range(2, len(names))
    if kind == "nested":
        found += [tuple(names[:size]) for size in sizes]
    elif kind == "all":
        found += [given for size in sizes for given in itertools.combinations(names, size)]
    return found


def chosen_samplers(method: Method, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Sampler -> tasks, restricted to the plan's. Raises UserError for a name the method does not have."""
    if plan.samplers is None:
        return dict(method.samplers)
    for name in plan.samplers:
        if name not in method.samplers:
            known = ", ".join(method.samplers)
            raise UserError(
                f"{type(method).__name__} has no sampler '{name}'; set plan.samplers to some of {known}"
            )
    return {name: method.samplers[name] for name in plan.samplers}


def skipped(method: Method, spec: DataSpec) -> dict[str, str]:
    """Task (`joint`, `cross`, `encode`) -> why this method cannot do it on this data."""
    reasons = {task: method.unsupported(spec, task) for task in ("joint", "cross", "encode")}
    return {task: reason for task, reason in reasons.items() if reason is not None}


def draws(method: Method, plan: Plan, available: int) -> list[Draw]:
    """All draws of a plan. `available`: tuples of the scored split, which bounds the conditional draws.

    Given one modality, all modalities are targets, the reconstruction too (25 pairs for five); given
    several, the targets are those not given.
    """
    spec, out = method.spec, []
    missing = skipped(method, spec)
    for sampler, tasks in chosen_samplers(method, plan).items():
        if "joint" in tasks and "joint" not in missing:
            out.append(Draw("joint", (), spec.names, sampler, plan.joint))
        if "cross" not in tasks or "cross" in missing:
            continue
        for given in subsets(spec.names, plan.subsets):
            targets = tuple(n for n in spec.names if len(given) == 1 or n not in given)
            wanted = plan.nested if len(given) > 1 and plan.subsets == "nested" else plan.cross
            out.append(Draw("cross", given, targets, sampler, min(wanted, available)))
    return out


def events(
    method: Method,
    split: Split,
    plan: Plan,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    batch_size: int = BATCH,
    precision: str = "fp32",
    usage: list[Usage] | None = None,
    advance: Callable[[int, str], None] | None = None,
    only: Sequence[Draw] | None = None,
    made: Mapping[str, Callable[[int], Batch]] | None = None,
) -> Iterator[Event]:
    """The events of a plan (or of the draws `only`), draw after draw, each in batches of `batch_size`.

    The method is put into evaluation mode and runs under `no_grad` (not `inference_mode`: samplers turn
    gradients on for their chains). Conditional draws take `n` test tuples spread over the split in a fixed
    way, in test order, the same for every method. `usage` receives one entry per draw; `advance` is called
    with (tuples, draw) after every batch. `made`: joint samplers that are no method's own, by name.
    Raises Diverged for samples that are not finite, UserError for samples of a wrong name or shape.
    """
    device = torch.device(device)
    todo = list(draws(method, plan, len(split)) if only is None else only)
    was_training = method.training
    method.eval()
    try:
        for draw in todo:
            cost = Usage(draw, batch_size)
            if usage is not None:
                usage.append(cost)
            # Joint draws have no test tuple of their own; `real` then cycles through the split.
            every = spread_rows(len(split), draw.n) if draw.task == "cross" else torch.arange(draw.n)
            for start in range(0, draw.n, batch_size):
                index = every[start : start + batch_size]
                rows = (index % len(split)).to(next(iter(split.stored.values())).device)
                real = {name: t.to(device) for name, t in split.batch(rows).items()}
                with forked(derive(seed, draw.name, str(start))), torch.no_grad():
                    synchronize(device)
                    began = time.perf_counter()
                    with autocast(device, precision):
                        generated = _generate(method, draw, real, len(index), made or {})
                    synchronize(device)
                    cost.add(len(index), time.perf_counter() - began)
                generated = _checked(generated, draw, method.spec, len(index))
                yield Event(
                    draw.task,
                    draw.given,
                    draw.targets,
                    draw.sampler,
                    draw.steps,
                    index,
                    generated,
                    real,
                    {name: t[rows] for name, t in split.labels.items()},
                    {name: t[rows] for name, t in split.groups.items()},
                )
                if advance is not None:
                    advance(len(index), draw.label)
    finally:
        method.train(was_training)


def _generate(
    method: Method, draw: Draw, real: Batch, n: int, made: Mapping[str, Callable[[int], Batch]]
) -> Batch:
    if draw.sampler in made:
        return made[draw.sampler](n)
    if draw.task == "joint":
        return method.joint_generate(n, draw.sampler, draw.steps)
    # Copies, so that a method that works in place cannot change what it is compared with.
    given = {name: real[name].clone() for name in draw.given}
    return method.cross_generate(given, draw.targets, draw.sampler, draw.steps)


def _checked(generated: Batch, draw: Draw, spec: DataSpec, n: int) -> Batch:
    """The targets alone, images as float32, after checking names, shapes and finiteness."""
    what = f"sampler '{draw.sampler}' ({draw.task} given {'+'.join(draw.given) or 'nothing'})"
    out: Batch = {}
    for target in draw.targets:
        modality = spec[target]
        if target not in generated:
            raise UserError(f"{what} returned no '{target}'; return every target that was asked for")
        tensor: Tensor = generated[target]
        if tuple(tensor.shape) != (n, *modality.shape):
            raise UserError(
                f"{what} returned '{target}' of shape {tuple(tensor.shape)}; "
                f"it must be {(n, *modality.shape)}"
            )
        if modality.kind == "image":
            tensor = tensor.detach().float()
            if not bool(torch.isfinite(tensor).all()):
                raise Diverged(f"{what} generated values that are not finite in '{target}'")
        out[target] = tensor.detach()
    return out
