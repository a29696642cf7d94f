"""Langevin dynamics over any energy, in latent space, in data space, or over several blocks at once.

One function serves the data chain (P1, Eqn 3), the posterior chain (Eqn 8, 17) and the prior chain of
the MVEBM family. The energy convention is U = -log density + constant: low energy = likely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

State = dict[str, Tensor]
"""Named blocks `[B, ...]` that move together, for example `z` and `w.m0`, or one image per modality."""

Record = Callable[[int, State, Tensor, State], None]
"""Called with step, state, energy `[B]` and the drift of the step to come, `-(s^2/2) dU/dx`, bounded."""


def energy_and_gradient(
    energy: Callable[[State], Tensor], state: Mapping[str, Tensor]
) -> tuple[Tensor, State]:
    """U(x) `[B]` and dU/dx for every block; no parameter gradient, no graph kept."""
    with torch.enable_grad():
        leaves = {name: block.detach().requires_grad_(True) for name, block in state.items()}
        # FlopCounterMode cannot differentiate with respect to a bare leaf; a view costs nothing.
        value = energy({name: leaf.view_as(leaf) for name, leaf in leaves.items()})
        gradient = torch.autograd.grad(value.sum(), list(leaves.values()))
    return value.detach(), dict(zip(leaves, gradient, strict=True))


def drift_factor(gradient: Mapping[str, Tensor], step_size: float, max_drift: float) -> Tensor:
    """Factor `[B]` in (0, 1] that bounds the drift norm |(s^2/2) dU/dx| of each example by `max_drift`."""
    squared = sum(g.float().flatten(1).square().sum(1) for g in gradient.values())
    norm = 0.5 * step_size**2 * torch.as_tensor(squared).sqrt()
    return (max_drift / norm.clamp_min(1e-12)).clamp_max(1.0)


def drift(
    gradient: Mapping[str, Tensor], step_size: float, max_drift: float | None = None, apart: bool = False
) -> State:
    """-(s^2/2) dU/dx of every block, its norm bounded per example, or `apart` per example and block."""
    factor = None if max_drift is None else drift_factor(gradient, step_size, max_drift)
    moves = {}
    for name, block in gradient.items():
        block = block.float()
        if max_drift is not None and apart:
            factor = drift_factor({name: block}, step_size, max_drift)
        if factor is not None:
            block = block * factor.view(-1, *[1] * (block.dim() - 1))
        moves[name] = -0.5 * step_size**2 * block
    return moves


def langevin(
    start: Mapping[str, Tensor],
    energy: Callable[[State], Tensor],
    steps: int,
    step_size: float,
    noise: float,
    max_drift: float | None = None,
    record: Record | None = None,
    apart: bool = False,
) -> tuple[State, Tensor]:
    """Run `steps` of x <- x - (s^2/2) dU/dx + n eps, eps ~ N(0, I).

    `noise` is n; n = s samples exp(-U) for small steps, a smaller n samples it at temperature (n/s)^2.
    `max_drift` bounds the norm of each example's drift, with `apart` that of each block by itself, so that
    an energy that is a sum over blocks runs independent chains. `record` is called
    before every step and after the last. Chain states are float32 whatever the networks compute in, since
    bfloat16 would swallow small noise. Nothing is clamped.

    Returns the final state (detached) and the energies `[steps, B]` met before each step.
    """
    state = {name: block.detach().float().clone() for name, block in start.items()}
    energies = []
    for step in range(steps):
        value, gradient = energy_and_gradient(energy, state)
        energies.append(value)
        moves = drift(gradient, step_size, max_drift, apart)
        if record is not None:
            record(step, state, value, moves)
        for name, block in state.items():
            block = block + moves[name]
            state[name] = block.add_(torch.randn_like(block), alpha=noise) if noise else block
    if record is not None:
        value, gradient = energy_and_gradient(energy, state)
        record(steps, state, value, drift(gradient, step_size, max_drift, apart))
    first = next(iter(state.values()))
    return state, torch.stack(energies) if energies else first.new_zeros(0, len(first))


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter gradients and cached spectral norms inside; all restored after.

    Spectral norm and BatchNorm must not change while a chain runs, nor couple its examples.
    """
    modes = {m: m.training for module in modules for m in module.modules()}
    flags = {p: p.requires_grad for module in modules for p in module.parameters()}
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        with parametrize.cached():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for p, flag in flags.items():
            p.requires_grad_(flag)
