"""What the training loop adds to the steps that it makes.

    python tests/loop_speed.py --method mvae --method ours

Trains each method of the PolyMNIST shapes on noise, as `bench run` would. *Steps* are losses, backward pass,
clipping and Adam; the loop fetches batches, counts losses, logs, and takes the time. Both are seconds of the
same training, so that other work on the machine falls on both; validation and checkpoints have clocks of
their own in a record and are counted apart here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
from speed_data import CPU, PICTURES, tuples

import bench.train
from bench.build import build_method
from bench.config import resolve
from bench.listing import columns
from bench.memory import keep_freed_memory
from bench.store import RunFolder
from methods.base import Loss


class Stopwatch:
    """In place of `bench.train.descend_all`: the same, with the seconds that its steps took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = bench.train.descend_all

    def __call__(self, *args: Any) -> Iterator[Loss]:
        losses = self.steps(*args)
        while True:
            began = time.perf_counter()
            loss = next(losses, None)
            self.seconds += time.perf_counter() - began
            if loss is None:
                return
            yield loss


def measure(name: str, preset: str, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of the steps alone, and the clocks that a record has of the training."""
    config = resolve(name, "polydigits", preset, [f"train.steps={steps}"])
    method, data, watch = build_method(config, PICTURES), tuples(4 * config.train.batch_size), Stopwatch()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(bench.train, "descend_all", watch):
        result = bench.train.train(
            method, data, data, config.train, RunFolder(Path(folder)), seed=0, device=CPU
        )
    assert result.status == "done", result.reason
    return watch.seconds, result.timing


@click.command()
@click.option("--method", "methods", multiple=True, default=("mvae", "mvtcae", "mmvaeplus", "ours"))
@click.option("--preset", default="quick", show_default=True)
@click.option("--steps", default=1000, show_default=True)
def main(methods: tuple[str, ...], preset: str, steps: int) -> None:
    """Print what the loop adds to a step of each method."""
    keep_freed_memory()
    rows = []
    for name in methods:
        inside, timing = measure(name, preset, steps)
        training = timing["train_s"]
        apart = (timing["validate_s"] + timing["save_s"]) / training
        rows.append(
            (
                name,
                f"{inside / steps:.4f} s",
                f"{training / inside - 1:.2%}",
                f"{apart:.2%}",
                f"{timing['other_s'] / training:.2%}",
            )
        )
    head = ("", "step", "loop adds", "validation, checkpoints", "the rest")
    click.echo(columns([head, *rows]))


if __name__ == "__main__":
    main()
