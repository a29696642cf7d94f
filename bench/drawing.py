"""Figures drawn with a trained method: samples, interpolations and chains, each from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.errors import UsageError
from bench.figure import plot_chain
from bench.grids import Words, plot_grid_cross, plot_grid_joint, plot_interpolation

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.spec import Split
    from methods.base import Method

T = TypeVar("T")


def spread(split: Split, count: int) -> Tensor:
    """Positions of at most `count` tuples of a figure, evenly over a split, the same for every method."""
    import torch

    return torch.linspace(0, len(split) - 1, min(count, len(split))).long()


def seeded(method: Method, seed: int, draw: Callable[[], T]) -> T:
    """Call `draw` from `seed` in evaluation mode; random state and mode are as before afterwards."""
    import torch

    from bench.randomness import derive, forked

    training = method.training
    method.eval()
    try:
        with forked(derive(seed, "figure")), torch.no_grad():
            return draw()
    finally:
        method.train(training)


def serves(method: Method, sampler: str | None, task: str) -> str:
    """The sampler to draw with. UsageError if the method cannot do the task or has no such sampler."""
    from methods.base import check_sampler

    reason = type(method).unsupported(method.spec, task)
    if reason is not None:
        raise UsageError(f"{type(method).__name__} cannot draw this figure: {reason}")
    try:
        return check_sampler(method, sampler, task)
    except ValueError as error:
        raise UsageError(str(error)) from error


def draw_joint(
    method: Method,
    path: Path,
    columns: int = 9,
    sampler: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 9: `columns` unconditional tuples."""
    sampler = serves(method, sampler, "joint")
    batch = seeded(method, seed, lambda: method.joint_generate(columns, sampler, steps))
    batch = {name: batch[name] for name in method.spec.names if name in batch}
    return plot_grid_joint(batch, path, f"{title or 'unconditional samples'}, sampler {sampler}", words)


def draw_cross(
    method: Method,
    split: Split,
    path: Path,
    columns: int = 9,
    sampler: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 10: every modality alone as the condition, `columns` tuples of `split` spread over it."""

    sampler = serves(method, sampler, "cross")
    batch = {name: cells.to(method.device) for name, cells in split.batch(spread(split, columns)).items()}
    draws = {}
    for name in method.spec.names:
        given, targets = {name: batch[name]}, [other for other in method.spec.names if other != name]

        def draw(given: Any = given, targets: Any = targets) -> Any:
            return method.cross_generate(given, targets, sampler, steps)

        generated = seeded(method, seed, draw)
        draws[name] = (given, {target: generated[target] for target in targets})
    return plot_grid_cross(draws, path, f"{title or 'conditional samples'}, sampler {sampler}", words)


def draw_interpolation(
    method: Method,
    path: Path,
    pairs: int = 2,
    steps: int = 9,
    seed: int = 0,
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 6: straight lines between two draws from the prior, private latents fixed along a line."""
    import torch

    reason = type(method).unsupported(method.spec, "interpolate")
    if reason is not None:
        raise UsageError(f"{type(method).__name__} cannot interpolate: {reason}")

    def line() -> Any:
        ends = method.sample_prior(2)
        weight = torch.linspace(0, 1, steps, device=ends["z"].device)[:, None]
        latent = {name: cells[:1].expand(steps, -1) for name, cells in ends.items()}
        latent["z"] = torch.lerp(ends["z"][:1], ends["z"][1:], weight)
        return method.decode(latent, method.spec.names)

    lines = seeded(method, seed, lambda: [line() for _ in range(pairs)])
    return plot_interpolation(lines, path, title or "latent interpolation", words)


def check_kinds(method: Method, kinds: Sequence[str]) -> None:
    """Raises UsageError for a method without chains, or without one of `kinds`."""
    reason = type(method).unsupported(method.spec, "chain")
    if reason is not None:
        raise UsageError(f"{type(method).__name__} has no chain to draw: {reason}")
    for kind in kinds:
        if kind not in method.chains:
            known = ", ".join(method.chains)
            raise UsageError(f"{type(method).__name__} runs no '{kind}' chain; choose from {known}")


def draw_diagnostics(
    method: Method,
    split: Split,
    path: Path,
    seed: int = 0,
    kinds: Sequence[str] = (),
    title: str = "",
) -> list[Path]:
    """How the chains move and mix, on the tuples and with the lengths that the scores come from.

    Raises UsageError for a method without chains, without one of `kinds`, or that gives no trace of them.
    """
    from bench.chains import CHAINS, LONG_CHAINS, LONG_STEPS, held_out, repeated, run_chains
    from bench.figure_chains import plot_diagnostics

    check_kinds(method, kinds)
    many = held_out(split, CHAINS, method.device)
    one = repeated(split, LONG_CHAINS, method.device)
    pairs = []
    for kind in kinds or method.chains:
        usual = seeded(method, seed, lambda kind=kind: run_chains(method, kind, many))
        long = seeded(method, seed, lambda kind=kind: run_chains(method, kind, one, LONG_STEPS))
        if usual.trace is None or long.trace is None:
            raise UsageError(
                f"{type(method).__name__} gives no trace of its '{kind}' chain; see `Chain.trace`"
            )
        pairs.append((usual, long))
    return plot_diagnostics(pairs, path, title)


def draw_chains(
    method: Method,
    split: Split,
    path: Path,
    n: int = 64,
    seed: int = 0,
    steps: int | None = None,
    examples: int = 2,
    kinds: Sequence[str] = (),
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 4: every kind of chain of the method, decoded along the way, with its profile over `n` chains.

    Raises UsageError for a method without chains, or without one of `kinds`.
    """

    check_kinds(method, kinds)
    index = spread(split, n)
    batch = {name: cells.to(method.device) for name, cells in split.batch(index).items()}
    written: list[Path] = []
    for kind in kinds or method.chains:
        observed = batch if kind == "posterior" else None

        def run(kind: str = kind, observed: Any = observed) -> Any:
            return method.chain(kind, observed, len(index), steps)

        chain = seeded(method, seed, run)
        heading = ", ".join(part for part in (f"{kind} chain", title) if part)
        written += plot_chain(
            chain, path.with_name(f"{path.name}-{kind}"), observed, examples, heading, words
        )
    return written
