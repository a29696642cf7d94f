"""What diagnostics need of a Langevin chain, collected while it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Trace
from methods.parts.langevin import State

PROJECTIONS = 3
"""Fixed random directions along which the state is followed."""


def squared_norm(blocks: State) -> Tensor:
    """Sum of squares over all blocks `[B]`."""
    return torch.stack([b.flatten(1).double().square().sum(1) for b in blocks.values()]).sum(0)


def log_acceptance(
    before: State, after: State, drift: State, drift_back: State, rise: Tensor, step_size: float, noise: float
) -> Tensor:
    """log min(1, a) `[B]`, a the ratio with which Metropolis and Hastings would accept the move.

    The chain x' = x + d(x) + n eps aims at exp(-U / t), t = (n / s)^2, so that

        log a = -(U(x') - U(x)) / t - (|x - x' - d(x')|^2 - |x' - x - d(x)|^2) / (2 n^2).

    rise: U(x') - U(x) `[B]`. drift, drift_back: d(x), d(x').
    """
    forth = squared_norm({k: after[k] - before[k] - drift[k] for k in drift})
    back = squared_norm({k: before[k] - after[k] - drift_back[k] for k in drift})
    log_ratio = -rise.double() * (step_size / noise) ** 2 - (back - forth) / (2 * noise**2)
    return log_ratio.clamp_max(0)


class Tracer:
    """A `record` callback for `langevin` that keeps a few numbers per chain and step.

    step_size, noise: s and n of the chain. The directions are drawn from a seed of their own.
    """

    def __init__(self, step_size: float, noise: float) -> None:
        self.step_size, self.noise = step_size, noise
        self.energies: list[Tensor] = []
        self.projections: list[Tensor] = []
        self.displacement: list[Tensor] = []
        self.accepted: list[Tensor] = []
        self._first: State | None = None
        self._last: tuple[State, State, Tensor] | None = None
        self._directions: State = {}

    @torch.no_grad()
    def __call__(self, step: int, state: State, energy: Tensor, drift: State) -> None:
        moving = {name: state[name].detach().clone() for name in drift}
        if self._first is None:
            self._first, self._directions = moving, _directions(moving)
        if self._last is not None and self.noise:
            before, drift_before, energy_before = self._last
            rise = energy - energy_before
            kept = log_acceptance(before, moving, drift_before, drift, rise, self.step_size, self.noise)
            self.accepted.append(kept.exp().float().cpu())
        size = sum(block[0].numel() for block in moving.values())
        moved = squared_norm({name: block - self._first[name] for name, block in moving.items()})
        self.energies.append(energy.detach().float().cpu())
        self.displacement.append((moved / size).sqrt().float().cpu())
        along = [moving[name].flatten(1) @ self._directions[name] for name in moving]
        self.projections.append(torch.stack(along).sum(0).cpu())
        self._last = moving, {name: d.clone() for name, d in drift.items()}, energy

    def trace(self) -> Trace:
        """What was seen so far. Raises RuntimeError before the first step."""
        if not self.energies:
            raise RuntimeError("this chain has not run; nothing was traced")
        return Trace(
            torch.stack(self.energies),
            torch.stack(self.displacement),
            torch.stack(self.projections),
            torch.stack(self.accepted) if self.accepted else None,
        )


def _directions(like: State) -> State:
    """Directions `[numel, PROJECTIONS]` of every block, of unit length over all blocks together."""
    generator = torch.Generator().manual_seed(0)
    drawn = {k: torch.randn(b[0].numel(), PROJECTIONS, generator=generator) for k, b in like.items()}
    length = torch.stack([d.square().sum(0) for d in drawn.values()]).sum(0).sqrt()
    return {k: (d / length).to(like[k].device) for k, d in drawn.items()}
