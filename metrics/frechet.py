"""Frechet distance between two sets of features, with streaming float64 statistics.

Features, then statistics, then the number: `Moments` accumulates a sum and a sum of outer products batch
by batch, `frechet_distance` compares two of them, and `FrechetMetric` does so for every draw.
The number must match `torch_fidelity.metric_fid` on the same features (tests/test_metrics_frechet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import Split
from metrics.cache import Arrays, cached_arrays
from metrics.distances import FOLDS, DistanceMetric, Values

Features = Callable[[str, Tensor], Tensor]
"""(modality name, uint8 images `[B, C, H, W]`) -> features `[B, D]`."""


class Moments:
    """Mean and covariance of features seen so far, in float64; memory is D^2 whatever the number seen.

    A fixed shift (the first feature vector, or `shift` `[D]`) is subtracted from everything, so that a large
    common offset does not cost digits of the covariance.
    """

    def __init__(self, shift: NDArray[np.float64] | None = None) -> None:
        self.n = 0
        self.shift: NDArray[np.float64] | None = None
        self._sum: NDArray[np.float64]
        self._outer: NDArray[np.float64]
        if shift is not None:
            self._begin(shift)

    def _begin(self, shift: NDArray[np.float64]) -> None:
        self.shift = shift
        self._sum, self._outer = np.zeros_like(shift), np.zeros((len(shift), len(shift)))

    def update(self, features: Tensor) -> None:
        """Add features `[B, D]`. Raises ValueError for values that are not finite or another D."""
        x = features.detach().cpu().to(torch.float64).numpy()
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(f"features must be finite and of shape [B, D], got shape {x.shape}")
        if len(x) == 0:
            return
        if self.shift is None:
            self._begin(x[0].copy())
        x = x - self.shift
        self.n += len(x)
        self._sum += x.sum(0)
        self._outer += x.T @ x

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of what was seen. Raises ValueError for fewer than two examples."""
        if self.shift is None or self.n < 2:
            raise ValueError(f"a covariance needs at least two examples, got {self.n}")
        centred = self._sum / self.n
        covariance = (self._outer - self.n * np.outer(centred, centred)) / (self.n - 1)
        return Statistics(centred + self.shift, (covariance + covariance.T) / 2, self.n)

    def without(self, fold: Moments) -> Moments:
        """Moments of what was seen here but not in `fold`, whose examples are among these; with one shift."""
        assert self.shift is not None and fold.shift is self.shift
        left = Moments(self.shift)
        left.n, left._sum, left._outer = self.n - fold.n, self._sum - fold._sum, self._outer - fold._outer
        return left


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


class FrechetMetric(DistanceMetric):
    """Frechet distance of every draw's images to the real test images, named as in `DistanceMetric`.

    beside: further scores of the features of one cell, (modality, features `[N, D]`) -> values by family,
    which are averaged and named in the same way (`kid_uncond`); the features are kept only where it is given.
    intervals: whether scores have one. It takes `FOLDS` distances per cell, of little cost for features of a
    hundred dimensions, but not for thousands; and there is none of `beside`.
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
        intervals: bool = False,
        cross: int = 0,
    ) -> None:
        if intervals and beside is not None:
            raise ValueError("scores beside the Frechet distance have no intervals")
        counts = {name: found.n for name, found in real.items()}
        super().__init__(prefix, counts, judge, floor, limit, floor_n, captions, cross)
        self.features, self.real, self.beside, self.intervals = features, real, beside, intervals

    def sample(self, modality: str) -> FeatureSample:
        return FeatureSample(self, modality)


LEAST_FOLD = 0.25
"""Of their mean size; where a fold is smaller, too few pictures stand behind a draw for an interval."""


class FeatureSample:
    """Features of the images of one cell: statistics of all and of folds, and for `beside` themselves."""

    def __init__(self, metric: FrechetMetric, modality: str) -> None:
        self._metric, self._modality = metric, modality
        self._moments = Moments()
        self._folds: list[Moments] = []
        self._kept: list[Tensor] = []

    @property
    def n(self) -> int:
        return self._moments.n

    def update(self, images: Tensor, folds: Tensor) -> None:
        features = self._metric.features(self._modality, images).detach().cpu()
        self._moments.update(features)
        if self._metric.intervals:
            self._folds = self._folds or [Moments(self._moments.shift) for _ in range(FOLDS)]
            for fold in folds.unique().tolist():
                self._folds[fold].update(features[folds == fold])
        if self._metric.beside is not None:
            self._kept.append(features)

    def values(self) -> Values:
        values = self._distance(self._moments)
        if self._metric.beside is not None:
            values |= self._metric.beside(self._modality, torch.cat(self._kept))
        return values

    def without(self) -> list[Values]:
        left = [self._moments.without(fold) for fold in self._folds]
        least = min((fold.n for fold in self._folds), default=0)
        known = least * FOLDS > LEAST_FOLD * self.n and all(moments.n > 1 for moments in left)
        return [self._distance(moments) for moments in left] if known else []

    def _distance(self, moments: Moments) -> Values:
        real = self._metric.real[self._modality]
        return {self._metric.name: frechet_distance(real, moments.statistics())}
