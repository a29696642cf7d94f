"""The batches of a training run, read ahead by worker processes where a picture takes work to read.

Which batch comes next is the order's business alone: workers only fetch what it will ask for, so a run is the
same with and without them, and resumes the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.device import fetch
from bench.randomness import Order
from datasets.spec import Batch, Split, UserError

WORKERS = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


class Feed:
    """The batches that `order` names, on `device`; `workers` processes read them from a compressed split."""

    def __init__(self, split: Split, order: Order, device: torch.device, workers: int = WORKERS) -> None:
        self.split, self.order, self.device = split, order, device
        slow = any(getattr(stored, "compressed", False) for stored in split.stored.values())
        self.workers = workers if slow else 0
        self._ahead: Iterator[tuple[Tensor, Batch]] | None = None

    def next(self) -> Batch:
        """The next batch. Raises UserError where a worker was ended from outside."""
        if not self.workers:
            return fetch(self.split, self.order.next(), self.device)
        state = self.order.state()
        index = self.order.next()
        try:
            if self._ahead is None:
                self._ahead = self._start(state)
            found, batch = next(self._ahead)
            if not torch.equal(found, index.cpu()):
                # The order was set elsewhere since (a new stage, a checkpoint): read ahead from there.
                self._ahead = self._start(state)
                _, batch = next(self._ahead)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A batch that the dead had sent but not handed over ends in a broken connection.
            if isinstance(error, RuntimeError) and "worker" not in str(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"a process that reads pictures was ended ({reason}): free memory and run the command again"
            ) from error
        return {name: t.to(self.device) for name, t in batch.items()}

    def close(self) -> None:
        """End the workers."""
        self._ahead = None

    def _start(self, state: dict[str, Any]) -> Iterator[tuple[Tensor, Batch]]:
        from torch.utils.data import DataLoader

        coming = Order(self.order.length, self.order.batch_size, 0)
        coming.load(state)
        loader = DataLoader(
            _Rows(self.split),
            batch_size=None,
            sampler=_Coming(coming),
            num_workers=self.workers,
            prefetch_factor=2,
            worker_init_fn=_deaf,
            generator=torch.Generator(),  # else it would draw from the generator of the training
        )
        return iter(loader)


class _Rows:
    """Batches by index tensor, as a worker reads them."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Batch]:
        return index, fetch(self.split, index, torch.device("cpu"))


class _Coming:
    """Index tensors in the order to come, without end."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.order.next()


def _deaf(_: int) -> None:
    """Ctrl-C is for the training loop, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
