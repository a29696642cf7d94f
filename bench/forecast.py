"""How long training still takes: the pace of every stage, measured as it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.progress import duration
from methods.base import Stage

SLOW = 60.0
"""Training that takes longer than this many seconds is announced."""
AFTER = 2.0
"""Seconds of training, after the first steps, before the pace is known well enough."""
WARMUP = 3
"""Steps at the start of a stage that pay for warming up and are not counted."""


class Forecast:
    """Seconds a step of each stage takes, as far as known. `budget`: steps of each stage."""

    def __init__(self, stages: Sequence[Stage], budget: Sequence[int]) -> None:
        self.stages, self.budget = stages, budget
        self.pace: dict[int, float] = {}
        self._began, self._announced = 0.0, False

    def begin(self) -> None:
        """A stage starts, or goes on after a stop."""
        self._announced = False

    def after(self, stage: int, count: int, synchronize: Callable[[], None]) -> bool:
        """Note that `count` steps are done since `begin`; True once, when the pace is known well enough."""
        if count == WARMUP:
            synchronize()
            self._began = time.monotonic()
        if count <= WARMUP:
            return False
        counted, elapsed = count - WARMUP, time.monotonic() - self._began
        self.pace[stage] = elapsed / counted
        known = not self._announced and elapsed > AFTER and (counted >= 5 or elapsed > 15)
        self._announced = self._announced or known
        return known

    def unknown(self, stage: int) -> list[int]:
        """The stages after this one whose pace nobody has measured."""
        return [i for i in range(stage + 1, len(self.stages)) if i not in self.pace]

    def left(self, stage: int, step: int) -> float | None:
        """Seconds until the last step, None as long as the pace of a stage is not known."""
        ahead = range(stage, len(self.stages))
        if any(i not in self.pace for i in ahead):
            return None
        return sum((self.budget[i] - (step if i == stage else 0)) * self.pace[i] for i in ahead)

    def sentence(self, stage: int, step: int, device: object) -> str | None:
        """What to tell the user, None where the rest is short or not known."""
        left = self.left(stage, step)
        if left is None or left <= SLOW:
            return None
        ahead = range(stage, len(self.stages))
        several = len(self.stages) > 1
        paces = ", ".join(
            f"{self.pace[i]:.2f} s a step{f' in {self.stages[i].name}' if several else ''}" for i in ahead
        )
        steps = sum(self.budget[stage:]) - step
        return (
            f"{steps} more steps take about {duration(left)} on {device} ({paces}); "
            "stop any time, the same command goes on"
        )
