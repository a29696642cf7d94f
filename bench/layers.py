"""Networks alone: the forward and backward passes of a method's own calls, with nothing around them.

A pass is recorded from the method at work, with the shapes of its inputs and which gradients are taken of
it, and made again on its own: encoders once, decoders as often as the method decodes, an energy as often as
its chain asks. What a step takes beyond that is the method's and the harness's doing. Passes that the method
computes twice to save memory count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_map

from bench.benchmark_step import Subject
from bench.costing import EPOCH, STEP, STEPS
from bench.device import autocast
from bench.optimise import losses_of, only, stage_groups
from bench.timing import Timing, weighted
from methods.base import Method, Progress, Stage
from methods.parts.cooperative import Cooperative

CHAIN_STEPS = 5
"""Steps of a chain in one timed call, over which its preparations are shared out."""
REPEATED = 10
"""Passes in one timed call of a network that is frozen, at most: it computes its spectral norms once."""


@dataclass
class Call:
    """One call of a network as it was made."""

    module: nn.Module
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)
    plain: bool = False
    """Whether tensors alone came back, so that the call can be made again with a backward pass."""

    def __post_init__(self) -> None:
        self.grad, self.training = torch.is_grad_enabled(), self.module.training
        self.trained = [p.requires_grad for p in self.module.parameters()]

        def loose(item: Any) -> Any:
            return item.detach().requires_grad_(item.requires_grad) if isinstance(item, Tensor) else item

        self.arguments, self.keywords = tree_map(loose, (self.arguments, self.keywords))

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for calls that cost the same."""
        inputs, form = tree_flatten((self.arguments, self.keywords))
        seen = tuple(
            (tuple(t.shape), t.dtype, t.requires_grad) if isinstance(t, Tensor) else repr(t) for t in inputs
        )
        return id(self.module), self.grad, self.training, tuple(self.trained), seen, str(form)

    @property
    def frozen(self) -> bool:
        """Evaluation mode without parameter gradients, as inside a chain."""
        return not self.training and not any(self.trained)

    def again(self) -> None:
        """Forward, and the backward pass to whatever asked for gradients."""
        with torch.set_grad_enabled(self.grad):
            out = self.module(*self.arguments, **self.keywords)
        ends = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor) and t.requires_grad]
        if not ends:
            return
        inputs = tree_flatten((self.arguments, self.keywords))[0]
        wanted = [
            t for t in [*inputs, *self.module.parameters()] if isinstance(t, Tensor) and t.requires_grad
        ]
        # One number seen as a tensor of ones: nothing to fill.
        ones = [t.new_ones(()).expand_as(t) for t in ends]
        torch.autograd.grad(ends, wanted, ones, allow_unused=True)


class Recorder:
    """Notes the outermost calls of a method's networks while it is `on`."""

    def __init__(self) -> None:
        self.on = False
        self.roots: list[Call] = []
        self._open: list[Call] = []

    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.on:
            self._open.append(Call(module, arguments, keywords))

    def after(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        if not self.on:
            return
        call = self._open.pop()
        leaves = tree_flatten(output)[0]
        call.plain = bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
        if call.plain:
            call.children = []
        (self._open[-1].children if self._open else self.roots).append(call)

    def calls(self) -> list[Call]:
        """The outermost calls that give tensors."""

        def expand(call: Call) -> list[Call]:
            return [call] if call.plain else [inner for child in call.children for inner in expand(child)]

        return [found for root in self.roots for found in expand(root)]


@contextmanager
def recording(method: Method) -> Iterator[Recorder]:
    """A recorder that hears every network of `method`."""
    recorder, handles = Recorder(), []
    for module in method.modules():
        if module is not method:
            handles.append(module.register_forward_pre_hook(recorder.before, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.after, with_kwargs=True))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Passes:
    """Recorded calls, those of equal cost once each; `calls()` times them, `total` adds them up."""

    recorded: list[Call]
    device: torch.device
    precision: str

    def __post_init__(self) -> None:
        groups: dict[tuple[Any, ...], list[Call]] = {}
        for call in self.recorded:
            groups.setdefault(call.key, []).append(call)
        self.firsts = [group[0] for group in groups.values()]
        self.counts: list[float] = [len(group) for group in groups.values()]
        self.repeats = [min(len(g), REPEATED) if g[0].frozen else 1 for g in groups.values()]
        self.recorded = []  # the inputs of all the others may go

    def calls(self) -> dict[str, Callable[[], None]]:
        pairs = zip(self.firsts, self.repeats, strict=True)
        return {str(i): self._timed(call, times) for i, (call, times) in enumerate(pairs)}

    def _timed(self, call: Call, times: int) -> Callable[[], None]:
        def run() -> None:
            cached = parametrize.cached() if call.frozen else nullcontext()
            with as_it_was(call), autocast(self.device, self.precision), cached:
                for _ in range(times):
                    call.again()

        return run

    def total(self, timings: Mapping[str, Timing]) -> Timing:
        """Seconds of all calls together."""
        pairs = zip(self.counts, self.repeats, strict=True)
        return weighted(timings, {str(i): count / times for i, (count, times) in enumerate(pairs)})


@contextmanager
def as_it_was(call: Call) -> Iterator[None]:
    """The network in the mode in which it was called; restored after."""
    parameters = list(call.module.parameters())
    flags, modes = [p.requires_grad for p in parameters], [(m, m.training) for m in call.module.modules()]
    try:
        call.module.train(call.training)
        for p, flag in zip(parameters, call.trained, strict=True):
            p.requires_grad_(flag)
        yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def step_passes(subject: Subject, stage: Stage) -> Passes:
    """The passes of one training step in `stage`."""
    s, progress = subject, Progress(stage.name, STEP, STEPS, EPOCH)
    precision = s.config.train.precision
    with only(s.method, stage_groups(s.method, stage).values()), recording(s.method) as recorder:
        recorder.on = True
        for loss in losses_of(s.method, s.batch, progress, s.device, precision):
            recorder.on = False  # what a backward pass computes again is no pass of its own
            loss.total.backward()
            recorder.on = True
    return Passes(recorder.calls(), s.device, precision)


@dataclass
class ChainStep:
    """Some steps of one chain, and the passes of the networks in one of them."""

    call: Callable[[], object]
    passes: Passes

    def seconds(self, timing: Timing) -> Timing:
        """Seconds of one step from those of `call`."""
        return Timing(tuple(s / CHAIN_STEPS for s in timing.seconds))


def chain_steps(subject: Subject) -> dict[str, ChainStep]:
    """A step of the data chain (`energy step`) and of the latent chain (`posterior step`); none for a VAE."""
    s, method = subject, subject.method
    if not isinstance(method, Cooperative):
        return {}
    precision = s.config.train.precision
    x = method.to_model(s.batch)
    with torch.no_grad(), autocast(s.device, precision):
        images = method.first_images(method.prior_draw(s.batch_size))
        latents = method.first_latents(method.experts(x))
    chains: dict[str, Callable[[int], object]] = {
        "posterior step": lambda steps: method.revise_latent(latents, x, steps)
    }
    if hasattr(method, "energy"):
        chains["energy step"] = lambda steps: method.revise_data(images, steps=steps)
    return {name: _chain_step(s, chain) for name, chain in chains.items()}


def _chain_step(subject: Subject, chain: Callable[[int], object]) -> ChainStep:
    s, precision = subject, subject.config.train.precision

    def run(steps: int) -> None:
        with autocast(s.device, precision):
            chain(steps)

    with recording(s.method) as recorder:
        recorder.on = True
        run(CHAIN_STEPS)
    passes = Passes(recorder.calls(), s.device, precision)
    passes.counts = [count / CHAIN_STEPS for count in passes.counts]
    return ChainStep(lambda: run(CHAIN_STEPS), passes)
