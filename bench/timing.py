"""Timing of several things side by side: their calls alternate, so other work on the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.device import synchronize

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""`processor` counts the seconds of all threads of this process, which other processes change little."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls, in the order they were made."""

    seconds: tuple[float, ...]

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))

    @property
    def p10(self) -> float:
        return self._quantile(0.1)

    @property
    def median(self) -> float:
        return self._quantile(0.5)

    @property
    def p90(self) -> float:
        return self._quantile(0.9)


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    warmup: int = 3,
    repeats: int = 20,
    clock: str = "wall",
) -> dict[str, Timing]:
    """Seconds of every call, the device synchronised before and after, `repeats` times after `warmup`.

    Every round makes each call once, every other round in the opposite order, so that none always follows
    the same other one.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} repetitions measure nothing; ask for at least 1")
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmup, repeats):
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            synchronize(device)
            began = now()
            calls[name]()
            synchronize(device)
            if turn >= 0:
                seconds[name].append(now() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def weighted(parts: Mapping[str, Timing], weights: Mapping[str, float]) -> Timing:
    """The sum of weight * seconds over `parts`, round by round."""
    rounds = zip(*(parts[name].seconds for name in weights), strict=True)
    return Timing(tuple(sum(w * s for w, s in zip(weights.values(), row, strict=True)) for row in rounds))
