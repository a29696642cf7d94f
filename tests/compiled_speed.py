"""Training steps and chains with the networks compiled by `torch.compile`, beside the same as they are.

    python tests/compiled_speed.py --method ours
    python tests/compiled_speed.py --method ours --device cuda --set train.precision=bf16

Compiled is every network by itself (the classes of `methods.parts.networks`), for the shapes that it gets;
what lies between them, and the loop of a chain, stays Python. Both sides start from equal weights and draw
equal numbers, so the gradients of one step are compared as well: a fast path that learns something
else is none. Needs a C++ compiler on a CPU; the first calls, which compile, are not timed.

Dynamo may not look whether parameters ask for gradients when the same module comes again (pytorch issue
139476): a graph traced in a chain, whose networks are frozen, would leave training without gradients,
and one traced in training would give the chain some that nobody wants. So every call says which ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import click
import torch
import torch._dynamo
from speed_data import tuples
from torch import Tensor, nn

from bench.benchmark_step import Subject, subject, training_steps
from bench.config import RunConfig, resolve
from bench.costing import EPOCH, STEP, STEPS, traceless
from bench.device import autocast, pick_device
from bench.listing import columns
from bench.optimise import losses_of, only, stage_groups
from bench.timing import CLOCKS, Timing, alternate
from methods.base import Progress, Stage
from methods.parts.cooperative import Cooperative

SIDES = ("as it is", "compiled")
NO_WAY_BACK = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}
"""Networks of one class share the count of graphs at which dynamo would leave them as they are."""


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules below `module` whose class is one of `methods.parts.networks`."""
    for child in module.children():
        if type(child).__module__.startswith("methods.parts.networks."):
            yield child
        else:
            yield from networks(child)


def compile_alone(network: nn.Module, backend: str, mode: str | None) -> None:
    """Compile `network` where it stands, one graph for every set of parameters that ask for gradients."""
    plain, parameters = network.forward, list(network.parameters())

    def traced(asking: tuple[bool, ...], *arguments: object) -> object:
        assert all(a in (True, False) for a in asking)  # dynamo guards only what is read
        return plain(*arguments)

    fast = torch.compile(traced, dynamic=False, backend=backend, mode=mode)
    network.forward = lambda *arguments: fast(tuple(p.requires_grad for p in parameters), *arguments)


def both_sides(config: RunConfig, device: torch.device, backend: str, mode: str | None) -> dict[str, Subject]:
    """The same method twice, its networks compiled in the second."""
    sides = {s: subject(s, config, tuples(config.train.batch_size), device) for s in SIDES}
    for network in networks(sides["compiled"].method):
        compile_alone(network, backend, mode)
    return sides


def gradients(s: Subject, stage: Stage) -> dict[str, Tensor]:
    """Gradient of the first loss of a step in `stage`, by parameter; the method is as before."""
    with traceless(s.method), only(s.method, stage_groups(s.method, stage).values()):
        torch.manual_seed(0)
        progress = Progress(stage.name, STEP, STEPS, EPOCH)
        next(losses_of(s.method, s.batch, progress, s.device, s.config.train.precision)).total.backward()
        return {name: p.grad.clone() for name, p in s.method.named_parameters() if p.grad is not None}


def deviation(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest distance of two gradients of one parameter, by the norm of the first; inf where one is missing.

    A gradient that is 0 but for rounding, a thousandth of all at most, says nothing by itself.
    """
    if first.keys() != second.keys():
        return float("inf")
    whole = torch.stack([g.norm() for g in first.values()]).norm()
    apart = [(second[k] - g).norm() / g.norm().clamp_min(1e-3 * whole) for k, g in first.items()]
    return float(torch.stack(apart).max())


def chains(s: Subject) -> dict[str, Callable[[], object]]:
    """Both chains of `ours` from equal starts, as training runs them; none for another method."""
    method, precision = s.method, s.config.train.precision
    if not isinstance(method, Cooperative):
        return {}
    x = method.to_model(s.batch)
    torch.manual_seed(0)
    with torch.no_grad(), autocast(s.device, precision):
        latents = method.first_latents(method.experts(x))
        images = method.first_images(method.prior_draw(s.batch_size))

    def run(chain: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            with autocast(s.device, precision):
                chain()

        return call

    found = {"latent chain": run(lambda: method.revise_latent(latents, x))}
    if hasattr(method, "energy"):
        found["data chain"] = run(lambda: method.revise_data(images))
    return found


def measured(
    config: RunConfig, device: torch.device, backend: str, mode: str | None, how: dict[str, object]
) -> list[tuple[str, dict[str, Timing], float | None]]:
    """For each stage and chain its name, the seconds of both sides, and for a stage how gradients deviate."""
    sides, rows = both_sides(config, device, backend, mode), []
    for stage in sides["compiled"].method.stages:
        if stage.share <= 0:
            continue
        apart = deviation(*(gradients(s, stage) for s in sides.values()))
        with training_steps(sides[SIDES[0]]) as plain, training_steps(sides[SIDES[1]]) as fast:
            calls = dict(zip(SIDES, (plain[stage.name], fast[stage.name]), strict=True))
            rows.append((f"step, {stage.name}", alternate(calls, device, **how), apart))
    found = {side: chains(s) for side, s in sides.items()}
    for name in found["compiled"]:
        calls = {side: found[side][name] for side in SIDES}
        rows.append((name, alternate(calls, device, **how), None))
    return rows


@click.command()
@click.option("--method", "methods", multiple=True, default=("ours", "mmvae"), show_default=True)
@click.option("--preset", default="quick", show_default=True)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE")
@click.option("--device", "name", default="auto", show_default=True)
@click.option("--backend", default="inductor", show_default=True, help="A backend of torch.compile.")
@click.option("--mode", default=None, help="A mode of inductor; those with CUDA graphs are untried.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True)
@click.option("--warmup", default=2, show_default=True)
@click.option("--repeats", default=7, show_default=True)
def main(
    methods: Sequence[str], preset: str, sets: Sequence[str], name: str, backend: str, mode: str | None, **how
) -> None:
    """Print what is how many times as fast compiled, and how far gradients differ."""
    device = pick_device(name)
    rows = [["", *SIDES, "times as fast", "gradients differ by"]]
    for method in methods:
        config = resolve(method, "polydigits", preset, sets)
        with torch._dynamo.config.patch(NO_WAY_BACK):
            found = measured(config, device, backend, mode, how)
        for what, timing, apart in found:
            plain, fast = (timing[side].median for side in SIDES)
            differ = "" if apart is None else f"{apart:.1e}"
            rows.append(
                [f"{method}: {what}", f"{plain:.4g} s", f"{fast:.4g} s", f"{plain / fast:.2f}", differ]
            )
    click.echo(f"{device}, {torch.get_num_threads()} threads, {preset}, {how}\n{columns(rows)}")


if __name__ == "__main__":
    main()
