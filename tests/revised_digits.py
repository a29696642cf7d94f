"""Where the experts of a trained `ours` lose the digit: in their means, their spread, or the latent chain.

    python tests/revised_digits.py RUN

RUN is the folder of a run of `ours` with its weights. For every tuple of `val` and every expert there are the
mean of q_m(z | x_m), a draw of it, and this draw revised given all modalities, as in training. A z is right
where the digit most often seen in its decoded pictures, by the data set's classifiers, is that of the tuple.
`scale` is the mean standard deviation of q_m.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor

from bench.evaluate import find_judges
from bench.job import Options
from bench.listing import columns
from bench.memory import keep_freed_memory
from bench.run import load_run
from methods.parts.cooperative import Cooperative
from methods.parts.energy_learning import to_model
from methods.parts.langevin import State
from methods.parts.separate_latents import SeparateLatents
from metrics.coherence import Classifiers

BATCH = 128


def digits(method: Cooperative, judges: Classifiers, latent: State) -> Tensor:
    """The digit `[B]` most often seen in the pictures decoded from a latent (the least of several)."""
    with torch.no_grad():
        pictures = method.decode(latent, method.spec.names)
    return torch.stack([judges.classify(name, picture) for name, picture in pictures.items()]).mode(0).values


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", type=int, help="Of the latent chain, in place of the run's own.")
@click.option("--data", type=click.Path(path_type=Path), envvar="BENCH_DATA")
@click.option("--cache", type=click.Path(path_type=Path), envvar="BENCH_CACHE", default=Path("cache"))
def main(run: Path, steps: int | None, data: Path | None, cache: Path) -> None:
    """How often means and draws of RUN's experts show the right digit, and draws after the latent chain."""
    keep_freed_memory()
    method, dataset, config = load_run(run, Options(results=run.parent, data=data, cache=cache))
    judges, reason = find_judges(dataset, cache)
    if judges is None or not isinstance(method, Cooperative) or isinstance(method, SeparateLatents):
        raise click.ClickException(reason or f"{config.method} has no experts of one latent to compare")
    method.eval()
    torch.manual_seed(0)
    val = dataset.split("val")
    lines = [["expert", "scale", "mean right", "draw right", "revised right", "of wrong draws mended"]]
    for m, name in enumerate(method.spec.names):
        scale, right = [], []
        for rows in torch.arange(len(val)).split(BATCH):
            x, digit = to_model(val.batch(rows)), val.labels["digit"][rows]
            with torch.no_grad():
                experts = method.experts(x)
            start = method.posterior_draw(experts, torch.full((len(rows),), m))
            end = method.revise_latent(start, x, steps)[0]
            kinds = (start | {"z": experts[name].z.location}, start, end)
            right.append(torch.stack([digits(method, judges, latent) == digit for latent in kinds]))
            scale.append(experts[name].z.scale.mean(1))
        mean, draw, revised = torch.cat(right, 1)
        shares = (mean, draw, revised, revised[~draw])
        lines.append([name, f"{torch.cat(scale).mean():.2f}", *(f"{s.float().mean():.3f}" for s in shares)])
    click.echo(columns(lines))


if __name__ == "__main__":
    main()
