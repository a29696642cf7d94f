"""The words every layer shares: Modality, DataSpec, Batch, Split, Dataset and UserError.

This module imports nothing else of the suite, so that methods and metrics can depend on it
without knowing any concrete data set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]
"""Modality name -> tensor `[B, *shape]`: images float32 in [0, 1], text int64 token ids.

A missing modality is an absent key, never a tensor of zeros.
"""


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: the thing, the reason, the way out."""


@dataclass(frozen=True)
class Modality:
    """One modality: an image of shape `(C, H, W)` or a text of shape `(length,)`.

    `vocabulary` and the ids of the special tokens have a meaning for text only.
    """

    name: str
    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    vocabulary: int = 0
    unknown: int = 0
    padding: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        if self.kind == "image" and len(self.shape) != 3:
            raise ValueError(f"image modality '{self.name}' needs shape (C, H, W), got {self.shape}")
        if self.kind == "text" and (len(self.shape) != 1 or self.vocabulary < 3):
            raise ValueError(f"text modality '{self.name}' needs shape (length,) and a vocabulary")

    @property
    def size(self) -> int:
        """Number of entries of one example."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class DataSpec:
    """The ordered modalities of a data set: all that a method may know about the data."""

    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.modalities):
            raise ValueError(f"modality names repeat: {self.names}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.modalities)

    @property
    def images(self) -> tuple[Modality, ...]:
        return tuple(m for m in self.modalities if m.kind == "image")

    @property
    def texts(self) -> tuple[Modality, ...]:
        return tuple(m for m in self.modalities if m.kind == "text")

    def __getitem__(self, name: str) -> Modality:
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise KeyError(f"no modality '{name}'; there are {', '.join(self.names)}")

    def __iter__(self) -> Iterator[Modality]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)


def to_uint8(images: Tensor) -> Tensor:
    """Float images to 8 bit: clamp to [0, 1], scale, round half to even (never truncate)."""
    return images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """8-bit images to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


@dataclass
class Split:
    """One split: uint8 images and int64 tokens, converted batch by batch.

    `stored`: by modality a tensor, or what is indexed like one (pictures that captions share, or that are
    decoded when they are wanted).

    `labels`: attribute name -> int64 `[N]`. `groups`: modality name -> int64 `[N]`, the identity of
    the source picture behind each entry; intervals resample by it where tuples recombine few
    pictures, and an empty dictionary means that every tuple is independent.
    """

    spec: DataSpec
    stored: dict[str, Tensor]
    labels: dict[str, Tensor]
    groups: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(t) for name, t in {**self.stored, **self.labels, **self.groups}.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(
                f"the modalities of a split have unequal lengths ({lengths}); rebuild the data set"
            )

    def __len__(self) -> int:
        return len(next(iter(self.stored.values())))

    def batch(self, index: Tensor | slice) -> Batch:
        """The tuples at `index` as a Batch: images float32 in [0, 1], text int64."""
        out: Batch = {}
        for modality in self.spec:
            rows = self.stored[modality.name][index]
            out[modality.name] = to_float(rows) if modality.kind == "image" else rows
        return out

    def distinct(self, name: str) -> Tensor:
        """Positions at which every stored entry of modality `name` occurs once, ascending.

        A picture that several captions share counts once; elsewhere these are all positions.
        """
        rows = getattr(self.stored[name], "rows", None)
        if rows is None:
            return torch.arange(len(self))
        _, inverse = torch.unique(rows.cpu(), return_inverse=True)
        found = torch.full((int(inverse.max()) + 1,), len(self))
        return found.scatter_reduce(0, inverse, torch.arange(len(self)), "amin").sort().values

    def to(self, device: torch.device | str) -> Split:
        """The same split with everything on `device`."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(device) for name, t in tensors.items()}

        return Split(self.spec, moved(self.stored), moved(self.labels), moved(self.groups))


class Oracle(Protocol):
    """What a data set with attributes knows of its captions."""

    attributes: dict[str, tuple[str, ...]]

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Attribute -> codes `[N]` of captions `[N, length]`, -1 where one cannot be read."""
        ...


class Dataset(ABC):
    """A data set that can build, verify and describe itself.

    `data` is a local source folder (`--data`, `BENCH_DATA`), `cache` the folder prepared copies live in.
    oracle: reads the attributes of captions, where they have any.
    """

    name: ClassVar[str]
    spec: DataSpec
    oracle: Oracle | None = None

    def __init__(self, cache: Path, data: Path | None = None, seed: int = 0) -> None:
        self.cache, self.data, self.seed = Path(cache), data, seed

    @abstractmethod
    def prepare(self) -> None:
        """Download with checksum, build and verify; quick when nothing is left to do.

        Raises UserError for a missing, truncated or altered source and leaves nothing half-written.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the prepared content (after `prepare`)."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What every table must say about this build, for example a stand-in background."""
        return ()

    def sentence(self, tokens: Tensor) -> str:
        """A caption `[length]` for people; the ids themselves where the data set knows no words."""
        return " ".join(str(int(i)) for i in tokens)

    @abstractmethod
    def split(self, name: Literal["train", "val", "test"]) -> Split:
        """One split of the prepared data. Presets are tuned on `val`; `test` is only ever scored."""
