"""Progress on stderr: a bar with losses, rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLAIN_EVERY = 20.0
"""Seconds between two plain lines."""


def duration(seconds: float) -> str:
    """Seconds in words: `48 s`, `6 min 20 s`, `3 h 05 min`."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Task:
    """One piece of long work of known length."""

    def __init__(self, reporter: Reporter, name: str, total: int, done: int, bar: Any = None) -> None:
        self.reporter, self.name, self.total = reporter, name, total
        self.done = self.first = done
        self.detail, self.left = "", ""
        self.began = self.printed = time.monotonic()
        self.bar, self.bar_id = bar, None
        if bar is not None:
            self.bar_id = bar.add_task(name, total=total, completed=done, detail="", rate="", left="")

    @property
    def rate(self) -> float:
        """Units a second since this task began."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.began)

    def advance(self, n: int = 1, detail: str | None = None, left: float | None = None) -> None:
        """`n` more units are done; `detail` (losses, say) is shown beside them.

        left: seconds that the rest takes, where units ahead cost more or less than those behind.
        """
        self.done += n
        self.detail = self.detail if detail is None else detail
        if n:
            seconds = (self.total - self.done) / self.rate if left is None and self.rate else left
            self.left = "" if seconds is None else f"{duration(seconds)} left"
        rate = f"{self.rate:.1f}/s"
        if self.bar is not None:
            self.bar.update(self.bar_id, completed=self.done, detail=self.detail, rate=rate, left=self.left)
        elif self.reporter.plain and time.monotonic() - self.printed >= PLAIN_EVERY:
            self.printed = time.monotonic()
            parts = [f"{self.name}: {self.done}/{self.total}", rate, self.left, self.detail]
            self.reporter.say(", ".join(part for part in parts if part))


class Reporter:
    """Where progress goes. `quiet` shows nothing but what `say` is given."""

    def __init__(self, quiet: bool = False) -> None:
        self.fancy = not quiet and sys.stderr.isatty()
        self.plain = not quiet and not self.fancy
        self._bar: Any = None

    def say(self, text: str) -> None:
        """One line on stderr."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a task while the block runs."""
        if not self.fancy or self._bar is not None:
            yield Task(self, name, total, done, self._bar)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            transient=True,
        )
        try:
            with self._bar:
                yield Task(self, name, total, done, self._bar)
        finally:
            self._bar = None
