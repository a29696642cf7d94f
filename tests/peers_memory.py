"""Peak memory of a training step of the suite and of one of MultiVae, each in a process of its own.

    pip install '.[peers]'
    python tests/peers_memory.py --case "mmvae K=10 iwae"

The cases of `peers_speed.py`: the same networks, batch, likelihood and estimator on both sides, fp32. A peak
is that of resident memory while two steps are made, everything the process holds included; `before` is what
it held when both libraries, the model and the batch were there, `share_beyond` the ratio of what came on top.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import click
from peers_speed import CASES, our_side, their_side
from speed_data import CPU, tuples

from bench.benchmark_step import peak_of, training_steps
from bench.errors import UsageError
from bench.listing import columns
from bench.memory import keep_freed_memory

SIDES = ("ours", "multivae")
STEPS = 2


@dataclass(frozen=True)
class Memory:
    """MiB of resident memory before the steps, and at most during them."""

    before: float
    peak: float


def measure(case: str, side: str, batch_size: int) -> Memory:
    """One side of a case, in this process. Raises UsageError where the system cannot count a peak anew."""
    keep_freed_memory()  # as `bench run` does
    train = tuples(batch_size)
    ours = our_side(CASES[case], train, "fp32")
    if side == "ours":
        with training_steps(ours) as steps:
            return _memory(steps["train"])
    return _memory(their_side(CASES[case], ours))


def _memory(step: Callable[[], None]) -> Memory:
    def several() -> None:
        for _ in range(STEPS):
            step()

    before = peak_of(lambda: None, CPU)  # a peak counted anew starts at what is resident
    peak = peak_of(several, CPU)
    if peak.of != "process":
        raise UsageError("this system does not count the peak of a process anew; run it on Linux")
    return Memory(before.mb, peak.mb)


def compare(case: str, batch_size: int) -> dict[str, Memory]:
    """Both sides, one after the other, each in a new process."""
    found = {}
    for side in SIDES:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[side] = pool.submit(measure, case, side, batch_size).result()
    return found


@click.command()
@click.option("--case", "chosen", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--batch-size", default=128, show_default=True)
def main(chosen: tuple[str, ...], batch_size: int) -> None:
    """Peak memory of training steps of the suite and of MultiVae."""
    sides = [f"{side}_{what}_mb" for side in SIDES for what in ("before", "peak")]
    rows = [["case", *sides, "share", "share_beyond"]]
    for case in chosen:
        ours, theirs = compare(case, batch_size).values()
        numbers = [ours.before, ours.peak, theirs.before, theirs.peak]
        shares = (ours.peak / theirs.peak, (ours.peak - ours.before) / (theirs.peak - theirs.before))
        rows.append([case, *(f"{n:.0f}" for n in numbers), *(f"{share:.2f}" for share in shares)])
    click.echo(columns(rows))


if __name__ == "__main__":
    main()
