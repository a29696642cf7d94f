"""Frechet distance between two sets of features, with streaming float64 statistics.

Features, then statistics, then the number: `Moments` accumulates a sum and a sum of outer products batch
by batch, `frechet_distance` compares two of them, and `FrechetMetric` does so for every draw.
The number must match `torch_fidelity.metric_fid` on the same features (tests/test_metrics_frechet.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import Split, to_uint8
from metrics.cache import Arrays, cached_arrays
from metrics.protocol import Event, Score

Features = Callable[[str, Tensor], Tensor]
"""(modality name, uint8 images `[B, C, H, W]`) -> features `[B, D]`."""


class Moments:
    """Mean and covariance of features seen so far, in float64; memory is D^2 whatever the number seen.

    A fixed shift (the first feature vector) is subtracted from everything, so that a large common offset
    does not cost digits of the covariance.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift: NDArray[np.float64] | None = None
        self._sum: NDArray[np.float64]
        self._outer: NDArray[np.float64]

    def update(self, features: Tensor) -> None:
        """Add features `[B, D]`. Raises ValueError for values that are not finite or another D."""
        x = features.detach().cpu().to(torch.float64).numpy()
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(f"features must be finite and of shape [B, D], got shape {x.shape}")
        if len(x) == 0:
            return
        if self._shift is None:
            self._shift = x[0].copy()
            self._sum, self._outer = np.zeros_like(self._shift), np.zeros((x.shape[1], x.shape[1]))
        x = x - self._shift
        self.n += len(x)
        self._sum += x.sum(0)
        self._outer += x.T @ x

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of what was seen. Raises ValueError for fewer than two examples."""
        if self._shift is None or self.n < 2:
            raise ValueError(f"a covariance needs at least two examples, got {self.n}")
        centred = self._sum / self.n
        covariance = (self._outer - self.n * np.outer(centred, centred)) / (self.n - 1)
        return Statistics(centred + self._shift, (covariance + covariance.T) / 2, self.n)


@dataclass(frozen=True)
class Statistics:
    """Mean `[D]`, covariance `[D, D]` and number of examples."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """Symmetric square root of the covariance; eigenvalues below zero are rounding and become 0.

        Kept, since one real set is compared with many generated ones.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)), in float64, never negative.

    The trace is the sum of the square roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), a symmetric
    positive matrix with the same eigenvalues as C_a C_b; so singular covariances need no added ridge and
    there is no imaginary part to discard. Raises ValueError for unequal dimensions.
    Source: Dowson and Landau, J. Multivariate Analysis 1982.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {a.mean.shape[0]} and {b.mean.shape[0]} features do not compare")
    product = a.root @ b.covariance @ a.root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    difference = a.mean - b.mean
    value = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(0.0, float(value))


def as_rgb(images: Tensor) -> Tensor:
    """uint8 images with their single grey channel repeated; others unchanged."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def split_statistics(
    split: Split,
    modality: str,
    features: Features,
    rows: Tensor,
    device: torch.device | str,
    batch: int = 256,
) -> Statistics:
    """Statistics of the stored (uint8) images of `modality` at `rows`."""
    moments = Moments()
    for index in rows.split(batch):
        moments.update(features(modality, split.stored[modality][index].to(device)))
    return moments.statistics()


def cached_statistics(cache: Path, key: str, compute: Callable[[], Statistics]) -> Statistics:
    """Statistics from the file of `key` under `cache`, as `metrics.cache.cached_arrays` keeps them."""

    def arrays() -> Arrays:
        found = compute()
        return {"mean": found.mean, "covariance": found.covariance, "n": np.array(found.n)}

    stored = cached_arrays(cache, "statistics", key, arrays)
    return Statistics(stored["mean"], stored["covariance"], int(stored["n"]))  # type: ignore[arg-type]


BETTER = {"precision": "higher", "recall": "higher"}
"""Families of scores of which more is better; of all others less is."""

Values = dict[str, float]
"""Family of scores (`fid`, `kid`, ...) -> value."""


class FrechetMetric:
    """Frechet distance of every draw's images to the real test images, named `<prefix>_uncond` and so on.

    `<prefix>_uncond`: per modality, and their mean. `<prefix>_cond`: every pair of one given modality and
    one target, reconstructions included, and the mean of all (25 pairs for five modalities).
    `<prefix>_cond_cross`: mean of the pairs without reconstructions. `<prefix>_t2i`: mean of those given one
    of `captions`. Draws given several modalities are not part of these. Inputs pass through `to_uint8`, at
    most `limit` examples per cell.
    `<prefix>_floor`: real training images against the test images, `floor_n` of them; of what is better when
    higher it is the `_ceiling`. `<prefix>_real_images`: test images behind every distance.

    beside: further scores of the features of one cell, (modality, features `[N, D]`) -> values by family,
    which are averaged and named in the same way (`kid_uncond`).
    The batches of one draw must come one after another: its statistics (D^2 numbers per cell, and the
    features where `beside` needs them) are turned into values and dropped as soon as the next draw begins.
    """

    def __init__(
        self,
        prefix: str,
        features: Features,
        real: dict[str, Statistics],
        judge: str,
        floor: Mapping[str, float | Values] | None = None,
        limit: int | None = None,
        floor_n: int = 0,
        beside: Callable[[str, Tensor], Values] | None = None,
        captions: Sequence[str] = (),
    ) -> None:
        self.floor_n, self.beside, self.captions = floor_n, beside, tuple(captions)
        self.name, self.features, self.real, self.judge, self.limit = prefix, features, real, judge, limit
        self.floor = {m: v if isinstance(v, dict) else {prefix: v} for m, v in (floor or {}).items()}
        self._draw: tuple[str, tuple[str, ...], str, int | None] | None = None
        self._open: dict[str, Moments] = {}
        self._kept: dict[str, list[Tensor]] = defaultdict(list)
        # (task, given, sampler, steps) -> target -> (values, n)
        self._cells: dict[tuple[str, tuple[str, ...], str, int | None], dict[str, tuple[Values, int]]] = {}

    def update(self, event: Event) -> None:
        draw = (event.task, event.given, event.sampler, event.steps)
        if draw != self._draw:
            self._close()
            if draw in self._cells:
                raise ValueError(f"the draw {draw} came back after another one; feed each draw in one piece")
            self._draw = draw
        if event.task == "cross" and len(event.given) > 1:
            return
        for target in event.targets:
            if target not in self.real:
                continue
            moments = self._open.setdefault(target, Moments())
            images = event.generated[target]
            if self.limit is not None:
                images = images[: max(0, self.limit - moments.n)]
            if len(images):
                features = self.features(target, to_uint8(images))
                moments.update(features)
                if self.beside is not None:
                    self._kept[target].append(features.detach().cpu())

    def _close(self) -> None:
        if self._draw is not None and self._open:
            self._cells[self._draw] = {
                target: (self._values(target, moments), moments.n)
                for target, moments in self._open.items()
                if moments.n > 1
            }
        self._draw, self._open, self._kept = None, {}, defaultdict(list)

    def _values(self, target: str, moments: Moments) -> Values:
        values = {self.name: frechet_distance(self.real[target], moments.statistics())}
        if self.beside is not None:
            values |= self.beside(target, torch.cat(self._kept[target]))
        return values

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
        n = min((found.n for found in self.real.values()), default=0)
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
