"""Keeps what a chain goes through, for figures and diagnostics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.base import Chain
from methods.parts.chain_trace import Tracer
from methods.parts.langevin import State


class Recorder:
    """A `record` callback for `langevin`: decoded frames every `every` steps, a value `[B]` at each step.

    decode: state -> Batch. value: what is plotted along the chain (None: the energy). steps: the chain's
    length, so that its end is always kept. step_size, noise: s and n of the chain, for its trace.
    """

    def __init__(
        self,
        steps: int,
        every: int,
        decode: Callable[[State], Batch],
        value: Callable[[State], Tensor] | None = None,
        *,
        step_size: float,
        noise: float,
    ) -> None:
        self.tracer = Tracer(step_size, noise)
        self.steps, self.every, self.decode, self.value = steps, max(1, every), decode, value
        self.at: list[int] = []
        self.frames: list[Batch] = []
        self.values: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, step: int, state: State, energy: Tensor, drift: State) -> None:
        self.tracer(step, state, energy, drift)
        self.values.append((energy if self.value is None else self.value(state)).detach().cpu())
        if step % self.every == 0 or step == self.steps:
            self.at.append(step)
            self.frames.append({name: x.detach().cpu() for name, x in self.decode(state).items()})

    def chain(self, kind: str, quantity: str) -> Chain:
        """The chain recorded so far; `quantity` is `energy` or `log_likelihood`."""
        return Chain(kind, quantity, self.at, self.frames, torch.stack(self.values), self.tracer.trace())
