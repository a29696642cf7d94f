"""What `bench cost` finds out, methods side by side: training step, ceiling, networks alone, sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.benchmark_step import Peak, StageSteps, Subject, peak_of, shares, training_steps
from bench.build import parameter_counts
from bench.ceiling import ConvolutionLog, Work, convolution_work, matrix_product
from bench.costing import overhead, sampler_tasks
from bench.device import autocast
from bench.layers import ChainStep, Passes, chain_steps, step_passes
from bench.randomness import derive, forked
from bench.sampling_cost import draw_call
from bench.timing import Timing, alternate, weighted
from metrics.cost import count_flops

DRAWN = 100
"""Tuples of one draw (METHODS 3.8), or as many as the data set has."""


@dataclass(frozen=True)
class Sampling:
    """One way to draw: seconds per call of `tuples` tuples, sequential evaluations, extra parameters."""

    sampler: str
    task: str
    tuples: int
    timing: Timing
    evaluations: int
    overhead: int


@dataclass(frozen=True)
class Alone:
    """A step and the passes of its networks alone, timed in turns; `networks` is None without networks."""

    step: Timing
    networks: Timing


@dataclass(frozen=True)
class Measured:
    """Everything about one subject. Steps are averaged over the stages by their shares."""

    subject: Subject
    parameters: Mapping[str, int]
    stages: Mapping[str, Timing]
    flops: Mapping[str, int]
    peak: Peak
    ceilings: Mapping[str, tuple[Work, Timing]]
    alone: Mapping[str, Alone] = field(default_factory=dict)
    sampling: Sequence[Sampling] = ()

    @property
    def step(self) -> Timing:
        return weighted(self.stages, shares(self.subject.method))

    @property
    def flops_per_step(self) -> float:
        return sum(share * self.flops[name] for name, share in shares(self.subject.method).items())

    @property
    def rate(self) -> float:
        """Floating-point operations a second in a step."""
        return self.flops_per_step / self.step.median


class _Bench:
    """The calls that one subject wants timed, and what the times mean."""

    def __init__(self, subject: Subject, steps: Mapping[str, StageSteps], layers: bool) -> None:
        self.subject, self.steps = subject, steps
        device, precision = subject.device, subject.config.train.precision
        log = ConvolutionLog()
        with log:
            self.flops = {name: count_flops(step) for name, step in steps.items()}
        peaks = [peak_of(step, device) for step in steps.values()]
        self.peak = max(peaks, key=lambda peak: peak.mb)
        works = {
            "matrix product": matrix_product(device, precision),
            "convolution": convolution_work(log, device),
        }
        self.works = {name: work for name, work in works.items() if work is not None}
        self.passes: dict[str, Passes] = {}
        self.chains: dict[str, ChainStep] = {}
        if layers:
            self.passes = {stage.name: step_passes(subject, stage) for stage in subject.method.stages}
            self.chains = chain_steps(subject)

    def calls(self) -> dict[str, Callable[[], Any]]:
        calls: dict[str, Callable[[], Any]] = {f"step/{name}": step for name, step in self.steps.items()}
        calls |= {f"ceiling/{name}": work.call for name, work in self.works.items()}
        calls |= {f"chain/{name}": chain.call for name, chain in self.chains.items()}
        for name, passes in self._all_passes().items():
            calls |= {f"alone/{name}/{i}": call for i, call in passes.calls().items()}
        return calls

    def _all_passes(self) -> dict[str, Passes]:
        return {**self.passes, **{name: chain.passes for name, chain in self.chains.items()}}

    def measured(self, timings: Mapping[str, Timing], sampling: Sequence[Sampling]) -> Measured:
        stages = {name: timings[f"step/{name}"] for name in self.steps}
        alone = {}
        for name, passes in self._all_passes().items():
            if not passes.counts:
                continue
            found = {str(i): timings[f"alone/{name}/{i}"] for i in range(len(passes.counts))}
            chain = self.chains.get(name)
            step = chain.seconds(timings[f"chain/{name}"]) if chain else stages[name]
            alone[name] = Alone(step, passes.total(found))
        ceilings = {name: (work, timings[f"ceiling/{name}"]) for name, work in self.works.items()}
        parameters = parameter_counts(self.subject.method)
        return Measured(self.subject, parameters, stages, self.flops, self.peak, ceilings, alone, sampling)


def measure(
    subjects: Sequence[Subject],
    *,
    warmup: int = 3,
    repeats: int = 20,
    clock: str = "wall",
    layers: bool = False,
    sampling: bool = True,
) -> list[Measured]:
    """Measure all subjects in turns, call by call, in this process; every method is as before afterwards.

    sampling: also draw with every sampler of each plan. Raises what a method raises on a training step.
    """
    device = subjects[0].device
    with ExitStack() as stack:
        benches = [_Bench(s, stack.enter_context(training_steps(s)), layers) for s in subjects]
        calls = {f"{i}/{name}": call for i, b in enumerate(benches) for name, call in b.calls().items()}
        timings = alternate(calls, device, warmup, repeats, clock)
    draws = _sampling(subjects, clock) if sampling else [[] for _ in subjects]
    return [
        bench.measured(
            {k.partition("/")[2]: t for k, t in timings.items() if k.startswith(f"{i}/")}, draws[i]
        )
        for i, bench in enumerate(benches)
    ]


def _sampling(subjects: Sequence[Subject], clock: str) -> list[list[Sampling]]:
    """Every sampler of every subject, in turns, in evaluation mode."""
    modes = [s.method.training for s in subjects]
    for s in subjects:
        s.method.eval()
    try:
        with forked(derive(0, "sampling time")), torch.no_grad():
            wanted = [
                (i, *pair)
                for i, s in enumerate(subjects)
                for pair in sampler_tasks(s.method, s.config.plan.samplers)
            ]
            calls = {"/".join(map(str, each)): _draw(subjects[each[0]], *each[1:]) for each in wanted}
            timings = alternate(calls, subjects[0].device, 1, 3, clock) if calls else {}
        out: list[list[Sampling]] = [[] for _ in subjects]
        for i, sampler, task in wanted:
            s, timing = subjects[i], timings[f"{i}/{sampler}/{task}"]
            extra = overhead(s.method, s.train, sampler, task, s.device, s.config.train.precision)
            nfe = s.method.nfe(sampler, task)
            out[i].append(Sampling(sampler, task, _drawn(s), timing, nfe, extra))
        return out
    finally:
        for s, mode in zip(subjects, modes, strict=True):
            s.method.train(mode)


def _drawn(subject: Subject) -> int:
    return min(DRAWN, len(subject.train))


def _draw(subject: Subject, sampler: str, task: str) -> Callable[[], None]:
    once = draw_call(subject.method, subject.train, sampler, task, _drawn(subject))

    def call() -> None:
        with autocast(subject.device, subject.config.train.precision):
            once()

    return call
