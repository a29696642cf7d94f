"""What every distance between drawn and real images shares: cells, their names and their means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import to_uint8
from metrics.protocol import Event, Score

BETTER = {"precision": "higher", "recall": "higher"}
"""Families of scores of which more is better; of all others less is."""

Values = dict[str, float]
"""Family of scores (`fid`, `kid`, ...) -> value."""


class ImageSample(Protocol):
    """The images of one modality of one draw, as they come batch by batch: what is kept of them."""

    @property
    def n(self) -> int:
        """Images seen so far."""
        ...

    def update(self, images: Tensor) -> None:
        """Add uint8 images `[B, C, H, W]`."""
        ...

    def values(self) -> Values:
        """Their distances to the real images, of two images at least."""
        ...


class DistanceMetric:
    """Distances of every draw's images to the real test images, named `<prefix>_uncond` and so on.

    `<prefix>_uncond`: per modality, and their mean. `<prefix>_cond`: every pair of one given modality and
    one target, reconstructions included, and the mean of all (25 pairs for five modalities).
    `<prefix>_cond_cross`: mean of the pairs without reconstructions. `<prefix>_t2i`: mean of those given one
    of `captions`. Draws given several modalities are not part of these. Inputs pass through `to_uint8`, the
    first `limit` examples of a draw unless `rows` says otherwise.
    `<prefix>_floor`: real training images against the test images, `floor_n` of them; of what is better when
    higher it is the `_ceiling`. `<prefix>_real_images`: test images behind every distance.

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
    ) -> None:
        self.name, self.judge, self.limit, self.floor_n = prefix, judge, limit, floor_n
        self.real_images, self.captions = dict(real_images), tuple(captions)
        self.floor = {m: v if isinstance(v, dict) else {prefix: v} for m, v in (floor or {}).items()}
        self._draw: tuple[str, tuple[str, ...], str, int | None] | None = None
        self._open: dict[str, ImageSample] = {}
        self._seen = 0
        # (task, given, sampler, steps) -> target -> (values, n)
        self._cells: dict[tuple[str, tuple[str, ...], str, int | None], dict[str, tuple[Values, int]]] = {}

    def sample(self, modality: str) -> ImageSample:
        """An empty sample of `modality`."""
        raise NotImplementedError

    def rows(self, task: str, start: int, count: int) -> slice | Tensor:
        """Which of `count` examples of a draw, from its number `start` on, belong to the sample."""
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
        for target in event.targets:
            if target not in self.real_images:
                continue
            if target not in self._open:
                self._open[target] = self.sample(target)
            images = event.generated[target][rows]
            if len(images):
                self._open[target].update(to_uint8(images))

    def _close(self) -> None:
        if self._draw is not None and self._open:
            self._cells[self._draw] = {
                target: (sample.values(), sample.n) for target, sample in self._open.items() if sample.n > 1
            }
        self._draw, self._open, self._seen = None, {}, 0

    def compute(self) -> list[Score]:
        self._close()
        scores = self._references()
        crossed: dict[tuple[str, int | None], list[tuple[str, str, Values, int]]] = defaultdict(list)
        for (task, given, sampler, steps), cells in self._cells.items():
            if task == "cross":
                crossed[sampler, steps] += [(given[0], t, values, n) for t, (values, n) in cells.items()]
                continue
            key = {"task": "joint", "sampler": sampler, "steps": steps}
            for target, (values, n) in cells.items():
                scores += self._scores("uncond", values, n, target=target, **key)
            scores += self._mean("uncond", list(cells.values()), **key)
        for (sampler, steps), pairs in crossed.items():
            key = {"task": "cross", "sampler": sampler, "steps": steps}
            for given, target, values, n in pairs:
                scores += self._scores("cond", values, n, given=given, target=target, **key)
            scores += self._mean("cond", [(v, n) for _, _, v, n in pairs], **key)
            scores += self._mean("cond_cross", [(v, n) for s, t, v, n in pairs if s != t], **key)
            scores += self._mean("t2i", [(v, n) for s, _, v, n in pairs if s in self.captions], **key)
        n = min(self.real_images.values(), default=0)
        return [*scores, Score(f"{self.name}_real_images", float(n), n, "", judge=self.judge)]

    def outcomes(self) -> dict[str, NDArray[np.bool_]]:
        return {}

    def _references(self) -> list[Score]:
        """What real training images reach, per modality and on average."""
        scores = []
        for target, values in self.floor.items():
            scores += self._scores("", values, self.floor_n, target=target)
        return scores + self._mean("", [(values, self.floor_n) for values in self.floor.values()])

    def _scores(self, kind: str, values: Values, n: int, **key: object) -> list[Score]:
        """One score per family; without a `kind` the bound of real images."""
        out = []
        for family, value in values.items():
            better = BETTER.get(family, "lower")
            what = kind or {"lower": "floor", "higher": "ceiling"}[better]
            out.append(Score(f"{family}_{what}", value, n, better, judge=self.judge, **key))  # type: ignore[arg-type]
        return out

    def _mean(self, kind: str, cells: list[tuple[Values, int]], **key: object) -> list[Score]:
        """The same of the mean over cells; nothing of none."""
        if not cells:
            return []
        families = [f for f in cells[0][0] if all(f in values for values, _ in cells)]
        means = {family: float(np.mean([values[family] for values, _ in cells])) for family in families}
        return self._scores(kind, means, min(n for _, n in cells), **key)
