"""Seeds, the state of every random generator, and the order in which training sees the data."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *parts: str) -> int:
    """A seed for one named part of a run, so that no two parts share their numbers."""
    text = "/".join([str(seed), *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator, in values that `torch.load(weights_only=True)` accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [
            str(kind),
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> bool:
    """Undo everything drawn since `random_state`; False where the GPUs are others, whose generators stay."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if not torch.cuda.is_available():
        return True
    if len(state["cuda"]) != torch.cuda.device_count():
        return False
    torch.cuda.set_rng_state_all(state["cuda"])
    return True


@contextlib.contextmanager
def forked(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, leave every generator as it was after."""
    before = random_state()
    try:
        seed_all(seed)
        yield
    finally:
        set_random_state(before)


class Order:
    """A new random permutation every epoch from a generator of its own; the last partial batch is dropped.

    The state is that of the generator when the epoch began and the position in it.
    """

    def __init__(self, length: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.length, self.batch_size, self.device = length, batch_size, device
        self.per_epoch = length // batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.begin()

    def begin(self, position: int = 0) -> None:
        """Start a new epoch at batch `position`."""
        self.began = self.generator.get_state()
        self.position = position
        self.permutation = torch.randperm(self.length, generator=self.generator).to(self.device)

    def next(self) -> Tensor:
        """Indices `[batch_size]` of the next batch."""
        if self.position == self.per_epoch:
            self.begin()
        start = self.position * self.batch_size
        self.position += 1
        return self.permutation[start : start + self.batch_size]

    def state(self) -> dict[str, Any]:
        return {"began": self.began, "position": self.position}

    def load(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.generator.set_state(state["began"])
        self.begin(int(state["position"]))
