"""A tiny data set with exact judges, for tests of generation and metrics."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datasets.spec import Dataset, DataSpec, Modality, Split, to_float

SIDE = 8
NAMES = ("a", "b", "c")


def _patterns() -> Tensor:
    """One pattern `[10, 3, 8, 8]` per digit, clearly apart from the others."""
    return (torch.rand(10, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) > 0.5).float()


PATTERNS = _patterns()
OFFSETS = {name: 0.15 * i for i, name in enumerate(NAMES)}
"""Modalities differ in brightness, so that a copy of one is no sample of another."""


class ToyData(Dataset):
    """Three 8 x 8 modalities sharing a digit, each tuple recombining few source pictures."""

    name = "toy"
    spec = DataSpec(tuple(Modality(name, "image", (3, SIDE, SIDE)) for name in NAMES))

    def __init__(self, cache: Path, counts: dict[str, int] | None = None, pictures: int = 40) -> None:
        super().__init__(cache)
        self.counts = counts or {"train": 600, "val": 100, "test": 400}
        self.pictures = pictures
        self._splits = {name: self._make(name, n) for name, n in self.counts.items()}

    def prepare(self) -> None:
        pass

    @property
    def fingerprint(self) -> str:
        parts = [t.numpy().tobytes() for s in self._splits.values() for t in s.stored.values()]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def split(self, name: Literal["train", "val", "test"]) -> Split:
        return self._splits[name]

    def _make(self, name: str, n: int) -> Split:
        g = torch.Generator().manual_seed(len(name) * 1000 + n)
        digit = torch.randint(0, 10, (n,), generator=g)
        stored, groups = {}, {}
        for m in NAMES:
            picture = torch.randint(0, self.pictures // 10, (n,), generator=g) * 10 + digit
            noise = 0.1 * torch.rand(n, 3, SIDE, SIDE, generator=g)
            image = 0.2 + OFFSETS[m] + 0.3 * PATTERNS[digit] + noise
            stored[m] = image.mul(255).round().clamp(0, 255).to(torch.uint8)
            groups[m] = picture
        return Split(self.spec, stored, {"digit": digit}, groups)


class ToyJudges:
    """Exact on real pictures: the pattern with the highest correlation. Features: a fixed ReLU layer."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.hashes = {name: f"toy-{name}" for name in names}
        self.hash = "toy"
        self.accuracy = dict.fromkeys(names, 1.0)
        g = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3 * SIDE * SIDE, 12, generator=g) / 10

    def classify(self, name: str, images: Tensor) -> Tensor:
        x = images.clamp(0, 1).flatten(1)
        centred = x - x.mean(1, keepdim=True)
        patterns = PATTERNS.flatten(1)
        return (centred @ (patterns - patterns.mean(1, keepdim=True)).T).argmax(1)

    def features(self, name: str, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return (to_float(images).flatten(1) @ self.weight).relu()

    def report(self) -> dict[str, object]:
        return {"hash": self.hash, "accuracy": self.accuracy}
