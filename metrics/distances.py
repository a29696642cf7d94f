"""What every distance between drawn and real images shares: cells, their names and their means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import to_uint8
from metrics.intervals import jackknife_half
from metrics.protocol import Event, Score
from metrics.rows import spread_rows, within

BETTER = {"precision": "higher", "recall": "higher"}
"""Families of scores of which more is better; of all others less is."""

Values = dict[str, float]
"""Family of scores (`fid`, `kid`, ...) -> value."""


FOLDS = 20
"""Into so many a draw is cut; each is left out once, to see how far other draws would move a distance."""

_FOLD = torch.randint(FOLDS, (1 << 17,), generator=torch.Generator().manual_seed(20_261_127))  # any seed


def folds_of(identity: Tensor) -> Tensor:
    """Fold `[B]` in [0, FOLDS) of examples with this `identity` `[B]` >= 0, the same in every call.

    At random: in a data set neighbours may be of one class, or classes may take turns.
    """
    return _FOLD[identity.cpu().long() % len(_FOLD)]


@dataclass(frozen=True)
class Found:
    """Distances of the `n` images of one cell, and the same without each of its `FOLDS` (none: not known)."""

    values: Values
    n: int
    without: Sequence[Values] = field(default_factory=list)

    @classmethod
    def mean(cls, cells: Sequence[Found]) -> Found:
        """Of the families that all cells have, a fold being left out of all of them at once."""
        families = [f for f in cells[0].values if all(f in cell.values for cell in cells)]

        def averaged(each: Sequence[Values]) -> Values:
            return {family: float(np.mean([values[family] for values in each])) for family in families}

        known = all(cell.without for cell in cells)
        without = [averaged([cell.without[fold] for cell in cells]) for fold in range(FOLDS)] if known else []
        return cls(averaged([cell.values for cell in cells]), min(cell.n for cell in cells), without)


class ImageSample(Protocol):
    """The images of one modality of one draw, as they come batch by batch: what is kept of them."""

    @property
    def n(self) -> int:
        """Images seen so far."""
        ...

    def update(self, images: Tensor, folds: Tensor) -> None:
        """Add uint8 images `[B, C, H, W]` and the fold `[B]` in [0, FOLDS) to which each belongs."""
        ...

    def values(self) -> Values:
        """Their distances to the real images, of two images at least."""
        ...

    def without(self) -> Sequence[Values]:
        """The same without fold 0, 1, ..., FOLDS - 1; empty if a fold is too small, or it costs too much."""
        ...


class DistanceMetric:
    """Distances of every draw's images to the real test images, named `<prefix>_uncond` and so on.

    `<prefix>_uncond`: per modality, and their mean. `<prefix>_cond`: every pair of one given modality and
    one target, reconstructions included, and the mean of all (25 pairs for five modalities).
    `<prefix>_cond_cross`: mean of the pairs without reconstructions. `<prefix>_t2i`: mean of those given one
    of `captions`. Draws given several modalities are not part of these. Inputs pass through `to_uint8`, the
    first `limit` examples of a draw unless `rows` says otherwise.
    Where the sample can do without folds of itself, scores have the 95 % interval of a jackknife over them:
    how far a distance at this n would move with other draws, the model and the real images as they are. Its
    bias at this n is no part of it. A fold of joint samples is a twentieth of the tuples; of samples given a
    modality it is the tuples of a twentieth of the given pictures, since tuples of one picture are not
    independent. What draws given different modalities share by their test tuples, the mix of classes, is not
    counted.
    `<prefix>_floor`: real training images against the test images, `floor_n` of them; of what is better when
    higher it is the `_ceiling`. `<prefix>_real_images`: test images behind every distance.

    limit: examples of a draw that count, of joint draws the first. They are spread over conditional ones,
    `cross` tuples in test order, where those of one class may be neighbours.
    real_images: image modality -> number of test images; those without an entry are left out.
    A subclass says in `sample` what it keeps of the images of one cell. The batches of one draw must come one
    after another: its samples are turned into values and dropped as soon as the next draw begins.
    """

    def __init__(
        self,
        prefix: str,
        real_images: Mapping[str, int],
        judge: str,
        floor: Mapping[str, float | Values] | None = None,
        limit: int | None = None,
        floor_n: int = 0,
        captions: Sequence[str] = (),
        cross: int = 0,
    ) -> None:
        self.name, self.judge, self.limit, self.floor_n = prefix, judge, limit, floor_n
        self.real_images, self.captions = dict(real_images), tuple(captions)
        self.floor = {m: v if isinstance(v, dict) else {prefix: v} for m, v in (floor or {}).items()}
        self._draw: tuple[str, tuple[str, ...], str, int | None] | None = None
        self._open: dict[str, ImageSample] = {}
        self._seen = 0
        self._crossed = spread_rows(cross, limit) if limit is not None and cross > limit else None
        # (task, given, sampler, steps) -> target -> what was found
        self._cells: dict[tuple[str, tuple[str, ...], str, int | None], dict[str, Found]] = {}

    def sample(self, modality: str) -> ImageSample:
        """An empty sample of `modality`."""
        raise NotImplementedError

    def rows(self, task: str, start: int, count: int) -> slice | Tensor:
        """Which of `count` examples of a draw, from its number `start` on, belong to the sample."""
        if task == "cross" and self._crossed is not None:
            return within(self._crossed, start, count)
        return slice(None) if self.limit is None else slice(0, max(0, self.limit - start))

    def update(self, event: Event) -> None:
        draw = (event.task, event.given, event.sampler, event.steps)
        if draw != self._draw:
            self._close()
            if draw in self._cells:
                raise ValueError(f"the draw {draw} came back after another one; feed each draw in one piece")
            self._draw = draw
        if event.task == "cross" and len(event.given) > 1:
            return
        rows = self.rows(event.task, self._seen, len(event.index))
        self._seen += len(event.index)
        given = event.given[0] if event.given else ""
        folds = folds_of(event.groups.get(given, event.index))[rows]
        for target in event.targets:
            if target not in self.real_images:
                continue
            if target not in self._open:
                self._open[target] = self.sample(target)
            images = event.generated[target][rows]
            if len(images):
                self._open[target].update(to_uint8(images), folds)

    def _close(self) -> None:
        if self._draw is not None and self._open:
            self._cells[self._draw] = {
                target: Found(sample.values(), sample.n, sample.without())
                for target, sample in self._open.items()
                if sample.n > 1
            }
        self._draw, self._open, self._seen = None, {}, 0

    def compute(self) -> list[Score]:
        self._close()
        scores = self._references()
        crossed: dict[tuple[str, int | None], list[tuple[str, str, Found]]] = defaultdict(list)
        for (task, given, sampler, steps), cells in self._cells.items():
            if task == "cross":
                crossed[sampler, steps] += [(given[0], target, found) for target, found in cells.items()]
                continue
            key = {"task": "joint", "sampler": sampler, "steps": steps}
            for target, found in cells.items():
                scores += self._scores("uncond", found, target=target, **key)
            scores += self._mean("uncond", list(cells.values()), **key)
        for (sampler, steps), pairs in crossed.items():
            key = {"task": "cross", "sampler": sampler, "steps": steps}
            for given, target, found in pairs:
                scores += self._scores("cond", found, given=given, target=target, **key)
            scores += self._mean("cond", [found for _, _, found in pairs], **key)
            scores += self._mean("cond_cross", [found for s, t, found in pairs if s != t], **key)
            scores += self._mean("t2i", [found for s, _, found in pairs if s in self.captions], **key)
        n = min(self.real_images.values(), default=0)
        return [*scores, Score(f"{self.name}_real_images", float(n), n, "", judge=self.judge)]

    def outcomes(self) -> dict[str, NDArray[np.bool_]]:
        return {}

    def _references(self) -> list[Score]:
        """What real training images reach, per modality and on average."""
        floors = {target: Found(values, self.floor_n) for target, values in self.floor.items()}
        scores = [s for target, found in floors.items() for s in self._scores("", found, target=target)]
        return scores + self._mean("", list(floors.values()))

    def _scores(self, kind: str, found: Found, **key: object) -> list[Score]:
        """One score per family; without a `kind` the bound of real images."""
        out = []
        for family, value in found.values.items():
            better = BETTER.get(family, "lower")
            what = kind or {"lower": "floor", "higher": "ceiling"}[better]
            interval: dict[str, float] = {}
            if found.without:
                half = jackknife_half([values[family] for values in found.without])
                interval = {"low": value - half, "high": value + half}
            named = {"judge": self.judge, **key, **interval}
            out.append(Score(f"{family}_{what}", value, found.n, better, **named))  # type: ignore[arg-type]
        return out

    def _mean(self, kind: str, cells: list[Found], **key: object) -> list[Score]:
        """The same of the mean over cells; nothing of none."""
        return self._scores(kind, Found.mean(cells), **key) if cells else []
