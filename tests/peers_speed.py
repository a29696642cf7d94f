"""A training step of the suite beside one of MultiVae with the same networks, in turns in one process.

    pip install '.[peers]'
    python tests/peers_speed.py --repeats 7

Five 3x28x28 pictures, Net-A, the sizes and settings of the `paper` presets of polydigits. Both sides make
losses, backward pass and Adam step, ours as training does, the library's as its trainer does
(`torch.optim.Adam` by default).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch
from multivae.data import MultimodalBaseDataset
from peers_cases import DREG, IWAE, LAPLACE, SCALE, Case, importance
from peers_multivae import peer_of
from speed_data import CPU, tuples

from bench.benchmark_step import Subject, subject, training_steps
from bench.config import resolve
from bench.device import autocast
from bench.listing import columns
from bench.memory import keep_freed_memory
from bench.timing import CLOCKS, Timing, alternate
from datasets.spec import Split

EPOCH = {"epoch": 20, "batch_ratio": 0.5}
"""Where the library's training stands: behind every annealing."""


def mixture(method: str, peer: str, samples: int, loss: dict[str, str]) -> Case:
    """MMVAE or MMVAE+ with Laplace experts and `samples` draws of each."""
    estimator = "iwae" if loss is IWAE else "dreg"
    hyper = {"samples": samples, "beta": 1.0, "family": "laplace", "estimator": estimator}
    return importance(method, peer, hyper, LAPLACE | loss)


CASES = {
    "mvae": Case("mvae", "MVAE", {}, {"warmup": 0}),
    "mopoe": Case("mopoe", "MoPoE"),
    "mvtcae": Case("mvtcae", "MVTCAE"),
    "mmvae K=1 iwae": mixture("mmvae", "MMVAE", 1, IWAE),
    "mmvae K=1 dreg": mixture("mmvae", "MMVAE", 1, DREG),
    "mmvae K=10 iwae": mixture("mmvae", "MMVAE", 10, IWAE),
    "mmvae K=10 dreg": mixture("mmvae", "MMVAE", 10, DREG),
    "mmvaeplus K=1 iwae": mixture("mmvaeplus", "MMVAEPlus", 1, IWAE),
}


@dataclass(frozen=True)
class Found:
    """Seconds of a step of both sides."""

    case: str
    ours: Timing
    theirs: Timing

    @property
    def speed(self) -> float:
        """How many of our steps fit into one of theirs."""
        return self.theirs.median / self.ours.median


def our_side(case: Case, train: Split, precision: str) -> Subject:
    """Our method with its `paper` networks, under the settings of the case."""
    settings = {**case.hyper, "likelihood": "laplace", "likelihood_scale": SCALE}
    sets = [f"{k}={v}" for k, v in settings.items()]
    config = resolve(case.method, "polydigits", "paper", [*sets, f"train.precision={precision}"])
    return subject(case.method, config, train, CPU, len(train))


def their_side(case: Case, like: Subject) -> Callable[[], None]:
    """One step of the library's model around networks of the same sizes."""
    model = peer_of(case, like.method).train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = MultimodalBaseDataset(like.batch)

    def step() -> None:
        adam.zero_grad()
        with autocast(CPU, like.config.train.precision):
            loss = model(data, **EPOCH).loss
        loss.backward()
        adam.step()

    return step


def compare(case: str, batch_size: int, precision: str, clock: str, warmup: int, repeats: int) -> Found:
    """Both sides in turns; theirs always in fp32."""
    train = tuples(batch_size)
    ours = our_side(CASES[case], train, precision)
    theirs = their_side(CASES[case], our_side(CASES[case], train, "fp32"))
    with training_steps(ours) as steps:
        calls: dict[str, Callable[[], Any]] = {"ours": steps["train"], "theirs": theirs}
        timings = alternate(calls, CPU, warmup, repeats, clock)
    return Found(case, timings["ours"], timings["theirs"])


@click.command()
@click.option("--case", "chosen", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--batch-size", default=128, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Of our side.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="processor", show_default=True)
@click.option("--warmup", default=1, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table")
def main(chosen: tuple[str, ...], style: str, **how: Any) -> None:
    """Time training steps of the suite and of MultiVae side by side."""
    keep_freed_memory()  # as `bench run` does; the library's side gains by it too
    found = [compare(case, **how) for case in chosen]
    rows = [
        {
            "case": f.case,
            "ours_s": f.ours.median,
            "multivae_s": f.theirs.median,
            "times_as_fast": f.speed,
        }
        for f in found
    ]
    if style == "json":
        click.echo(json.dumps({"threads": torch.get_num_threads(), **how, "cases": rows}, indent=2))
        return
    click.echo(f"{torch.get_num_threads()} threads, {how}")
    lines = [[str(v) if isinstance(v, str) else f"{v:.4g}" for v in row.values()] for row in rows]
    click.echo(columns([list(rows[0]), *lines]))


if __name__ == "__main__":
    main()
