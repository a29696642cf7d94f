"""How fine a mixture the prior of a trained `ours` should be: joint samples with priors fitted anew.

    python tests/refit_prior.py RUN

RUN is the folder of a run of `ours` or `ours_w` with its weights. With these weights, draws of the posterior
of training tuples are taken, before and after the latent chain; while the model trained, its prior was fitted
to draws after the chain. Decoded are both kinds of draws, the latest draws of training where a mixture kept
them, draws of the prior in the weights, and draws of mixtures fitted now to those after the chain, by EM from
k-means with one or more seeds; judges and FD-clf of `val` score them. The log density of draws that no
mixture was fitted to says what a finer one has learnt beyond the draws it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, product
from pathlib import Path

import click
import torch
from torch import Tensor

from bench.evaluate import coherence_metric, find_judges
from bench.job import Options
from bench.listing import columns
from bench.memory import keep_freed_memory
from bench.run import load_run
from datasets.spec import Split
from methods.parts.cooperative import Cooperative
from methods.parts.energy_learning import to_model
from methods.parts.fitted_mixture import RECENT, FittedMixture
from metrics.fd_clf import fd_clf
from metrics.protocol import Event
from metrics.rows import spread_rows

FITTED = RECENT
"""Draws a prior is fitted to: as many as in training."""

HELD_OUT = 1400
"""Draws that no mixture is fitted to."""

SCORED = 2000
BATCH = 128


def posterior_draws(method: Cooperative, train: Split) -> tuple[Tensor, Tensor]:
    """z of `FITTED + HELD_OUT` training tuples, all given: draws of q(z|X), and the same after T steps."""
    before, after = [], []
    for rows in spread_rows(len(train), FITTED + HELD_OUT).split(BATCH):
        x = to_model(train.batch(rows))
        with torch.no_grad():
            start = method.posterior_draw(method.experts(x))
        before.append(start["z"])
        after.append(method.revise_latent(start, x)[0]["z"].detach())
    order = torch.randperm(FITTED + HELD_OUT)
    return torch.cat(before)[order], torch.cat(after)[order]


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--components", default="20,40,80", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="BENCH_DATA")
@click.option("--cache", type=click.Path(path_type=Path), envvar="BENCH_CACHE", default=Path("cache"))
def main(run: Path, components: str, seeds: int, data: Path | None, cache: Path) -> None:
    """Score joint samples of RUN with its prior and with mixtures of so many COMPONENTS, SEEDS times each."""
    keep_freed_memory()
    method, dataset, config = load_run(run, Options(results=run.parent, data=data, cache=cache))
    judges, reason = find_judges(dataset, cache)
    if judges is None or not isinstance(method, Cooperative):
        raise click.ClickException(reason or f"{config.method} has no prior that is fitted while it trains")
    method.eval()
    torch.manual_seed(0)
    val = dataset.split("val")
    before, after = posterior_draws(method, dataset.split("train"))
    fitted, held_out = after[:-HELD_OUT], after[-HELD_OUT:]

    def score(name: str, draw: Callable[[int], dict[str, Tensor]], density: str = "") -> list[str]:
        metrics = [
            coherence_metric(dataset, judges, val),
            fd_clf(judges, val, None, fingerprint=dataset.fingerprint, split="val", cache=cache),
        ]
        torch.manual_seed(1)
        for index in torch.arange(SCORED).split(BATCH):
            with torch.no_grad():
                drawn = method.decode(draw(len(index)), method.spec.names)
            for metric in metrics:
                metric.update(Event("joint", (), method.spec.names, "gen", None, index, drawn, {}))
        found = {s.metric: s.value for m in metrics for s in m.compute() if not s.target and not s.attribute}
        return [name, f"{found['coherence_joint']:.3f}", f"{found['fd_clf_uncond']:.0f}", density]

    def in_turn(z: Tensor) -> Callable[[int], dict[str, Tensor]]:
        at = count(step=BATCH)
        return lambda n: {"z": z[(start := next(at)) : start + n]}

    lines = [
        ["z from", "joint coherence", "FD-clf joint", "log density, held out"],
        score("draws of q(z|X)", in_turn(before)),
        score("the same, revised", in_turn(after)),
    ]
    prior = method.priors.of("z")
    if isinstance(prior, FittedMixture) and int(prior.seen) >= len(prior.recent):
        lines.append(score("those it last kept", in_turn(prior.recent[-SCORED:])))
    density = "" if prior is None else f"{prior.log_prob(held_out).mean():.1f}"
    lines.append(score("prior of the run", method.prior_draw, density))
    for k, seed in product((int(text) for text in components.split(",")), range(seeds)):
        torch.manual_seed(seed)
        mixture = FittedMixture(fitted.shape[1], k)
        mixture.track(fitted[torch.randperm(FITTED)])  # in another order, so that k-means begins elsewhere
        mixture.settle()
        density = f"{mixture.log_prob(held_out).mean():.1f}"
        lines.append(score(f"mixture of {k}, seed {seed}", lambda n, m=mixture: {"z": m.sample(n)}, density))
    click.echo(columns(lines))


if __name__ == "__main__":
    main()
