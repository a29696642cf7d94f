"""What a metric sees and what it answers: Event, Encodings, Score and the protocols."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from datasets.spec import Batch

COLLAPSED = 0.3
"""A larger share of one class among the predictions for joint samples is a collapse (METHODS trap 30)."""


@dataclass
class Event:
    """One batch of one draw, handed to every metric.

    task: `joint` (unconditional) or `cross` (given -> targets; a target that is also given is a
    reconstruction). index `[B]`: positions in the test order (for `joint`: 0, 1, ... up to n).
    generated: tensors as the method returned them, images [0, 1] not yet clamped. real: the test
    tuples at `index`. labels, groups: of those tuples (`Split.labels`, `Split.groups` at `index`).
    """

    task: Literal["joint", "cross"]
    given: tuple[str, ...]
    targets: tuple[str, ...]
    sampler: str
    steps: int | None
    index: Tensor
    generated: Batch
    real: Batch
    labels: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Encodings:
    """Latents of one split for one given subset: name (`z`, `w.m0`) -> `[N, D]`, with labels `[N]`."""

    split: Literal["train", "test"]
    given: tuple[str, ...]
    latents: dict[str, Tensor]
    labels: dict[str, Tensor]
    groups: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One number in long form.

    metric: a key of the reference numbers (`coherence_joint`, ...). given/target: modality names joined
    by `+`, or "" for an average. attribute: a further key (label name, `n_given=2`, latent name), or "".
    n: examples behind the value. judge: hash of the classifier or feature network, or "". low/high:
    95 % interval over examples (None where there is none). unavailable: why there is no value.
    """

    metric: str
    value: float | None
    n: int
    better: Literal["higher", "lower", ""]
    task: str = ""
    given: str = ""
    target: str = ""
    sampler: str = ""
    steps: int | None = None
    attribute: str = ""
    judge: str = ""
    low: float | None = None
    high: float | None = None
    unavailable: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class EventMetric(Protocol):
    """A metric over events: `update` once per batch, `compute` at the end."""

    name: str

    def update(self, event: Event) -> None: ...

    def compute(self) -> list[Score]: ...

    def outcomes(self) -> dict[str, np.ndarray]:
        """Per-tuple results (bool, in test order) by cell name, for paired statistics; may be empty."""
        ...
