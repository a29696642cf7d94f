"""Methods whose scores are known beforehand: the ceiling, chance, a collapse and a copy.

They look pictures up in the splits they are given, so they cannot be trained and serve tests only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from datasets.spec import Batch, Split, to_uint8
from methods.base import Loss, Method, ParamGroup, Progress


class Reference(Method):
    """Base of the reference methods: finds the tuples that given pictures come from.

    splits: all splits whose pictures may be given; the last one is that which is sampled from.
    """

    citation = "reference method of the test-suite"

    def __init__(self, *splits: Split) -> None:
        super().__init__(splits[-1].spec)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.names = self.spec.names
        self.pool = {n: torch.cat([s.stored[n] for s in splits]) for n in self.names}
        self.labels = torch.cat([next(iter(s.labels.values())) for s in splits])
        self.first = len(self.labels) - len(splits[-1])
        noise = torch.Generator().manual_seed(7)
        self.noise = torch.randn(len(self.labels), 16, generator=noise)
        self.rows: dict[str, dict[bytes, int]] = {
            n: {row.numpy().tobytes(): i for i, row in enumerate(self.pool[n])} for n in self.names
        }

    def find(self, given: Mapping[str, Tensor]) -> Tensor:
        """Position in the pool of the tuples behind the pictures of the first given modality."""
        name, pictures = next(iter(given.items()))
        return torch.tensor([self.rows[name][row.numpy().tobytes()] for row in to_uint8(pictures).cpu()])

    def take(self, name: str, rows: Tensor) -> Tensor:
        return self.pool[name][rows].float() / 255

    def any_rows(self, n: int) -> Tensor:
        return torch.randint(self.first, len(self.labels), (n,))

    def param_groups(self) -> dict[str, ParamGroup]:
        return {"generator": ParamGroup([self.anchor])}

    def forward(self, x: Batch, progress: Progress) -> Loss:
        return Loss.of(anchor=self.anchor.square().sum())


class RealTuples(Reference):
    """Generates real test tuples: every metric's ceiling."""

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        rows = self.any_rows(n)
        return {name: self.take(name, rows) for name in self.names}

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        rows = self.find(given)
        return {name: self.take(name, rows) for name in targets}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": nn.functional.one_hot(self.labels[self.find(given)], 10).float()}


class ShuffledPairs(Reference):
    """Real pictures put together at random: perfect margins, no relation at all between modalities."""

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        return {name: self.take(name, self.any_rows(n)) for name in self.names}

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        n = len(next(iter(given.values())))
        return {name: self.take(name, self.any_rows(n)) for name in targets}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": self.noise[self.find(given)]}


class OneTuple(Reference):
    """Always the same tuple: joint coherence 1, and collapsed."""

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        rows = torch.full((n,), self.first)
        return {name: self.take(name, rows) for name in self.names}

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        every = self.joint_generate(len(next(iter(given.values()))))
        return {name: every[name] for name in targets}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": torch.zeros(len(next(iter(given.values()))), 4)}


class Copycat(Reference):
    """Returns its input as every target."""

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        picture = self.take(self.names[0], self.any_rows(n))
        return {name: picture.clone() for name in self.names}

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        picture = next(iter(given.values()))
        return {name: picture.clone() for name in targets}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": next(iter(given.values())).flatten(1)}
