"""Frechet distance in the features of the data set's own classifiers: `fd_clf`, never called FID.

Features: 128 activations after the ReLU of each modality's classifier in evaluation mode, from 8-bit
images. Reported beside FID, or where the Inception weights are missing; the two share no column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from datasets.spec import Split
from metrics.frechet import (
    Features,
    FrechetMetric,
    Statistics,
    cached_statistics,
    frechet_distance,
    split_statistics,
)
from metrics.rows import spread_rows


class FeatureJudges(Protocol):
    """The part of `metrics.judges.Judges` that this metric needs."""

    hash: str
    hashes: dict[str, str]

    def features(self, name: str, images: Tensor) -> Tensor: ...


def real_statistics(
    test: Split,
    train: Split | None,
    modalities: Sequence[str],
    features: Features,
    hashes: dict[str, str],
    *,
    fingerprint: str,
    split: str,
    cache: Path,
    device: torch.device | str,
    limit: int | None = None,
    drawn: int | None = None,
    batch: int = 256,
) -> tuple[dict[str, Statistics], dict[str, float], int]:
    """Statistics of the real images of each modality, and the floor: the distance of train images to them.

    An image that several captions share counts once. limit: at most so many of `test`; drawn: as many train
    images as a method draws, since the distance falls with their number. Returns statistics, floors (none
    without `train`) and the number of train images. Computed once, then read from the cache.
    """

    def images(part: Split) -> int:
        return min((len(part.distinct(name)) for name in modalities), default=0)

    count = min(limit or images(test), images(test))
    beside = min([drawn or count, count] + ([images(train)] if train is not None else []))
    real: dict[str, Statistics] = {}
    floor: dict[str, float] = {}
    for name in modalities:

        def statistics(part: Split, which: str, n: int, name: str = name) -> Statistics:
            every = part.distinct(name)
            rows = every[spread_rows(len(every), n)]
            key = f"{fingerprint}|{which}|{len(rows)}|{name}|{hashes[name]}"
            return cached_statistics(
                cache, key, lambda: split_statistics(part, name, features, rows, device, batch)
            )

        real[name] = statistics(test, split, count)
        if train is not None:
            floor[name] = frechet_distance(real[name], statistics(train, "train", beside))
    return real, floor, beside


def fd_clf(
    judges: FeatureJudges,
    test: Split,
    train: Split | None,
    *,
    fingerprint: str,
    split: str = "test",
    cache: Path,
    device: torch.device | str = "cpu",
    drawn: int | None = None,
) -> FrechetMetric:
    """The metric `fd_clf` over all image modalities that have a judge; `drawn` joint samples set its floor.

    All of the scored split against all that was drawn: these features are cheap, and fewer pictures would
    only add bias.
    """
    names = [m.name for m in test.spec.images if m.name in judges.hashes]
    real, floor, beside = real_statistics(
        test,
        train,
        names,
        judges.features,
        judges.hashes,
        fingerprint=fingerprint,
        split=split,
        cache=cache,
        device=device,
        drawn=drawn,
    )
    return FrechetMetric("fd_clf", judges.features, real, judges.hash, floor, floor_n=beside, intervals=True)
