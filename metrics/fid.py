"""Frechet Inception distance with torch-fidelity's Inception-v3 and the published 2015 weights.

`fid` is only ever this network with these weights: a file whose SHA-256 does not begin with `6726825d`
is refused, and without a good file the score is `unavailable` with the command that gets one.
The network must be torch-fidelity's `FeatureExtractorInceptionV3`, 2048 pooled features, fed uint8.
torch-fidelity's own statistics cache is not used: its key knows neither content nor sample count.
Kernel distance, precision and recall stand beside it, of the same features (`metrics.kid`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.spec import Split
from metrics.cache import cached_arrays
from metrics.frechet import FrechetMetric, Moments, as_rgb, frechet_distance
from metrics.kid import kid_and_neighbours
from metrics.rows import spread_rows
from metrics.weights import Published


def weights_url() -> str:
    """Where torch-fidelity publishes the weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def hub_folder() -> Path:
    """The folder in which torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


SHA256 = "6726825d"
"""The first digits of the SHA-256 of the weights, which their file names carry too."""

WEIGHTS = Published(
    "Inception",
    SHA256,
    (f"weights-inception-2015-12-05-{SHA256}.pth", f"pt_inception-2015-12-05-{SHA256}.pth"),
    "BENCH_INCEPTION",
    weights_url,
    hub_folder,
)
JUDGE = f"inception-{SHA256}"


def inception(weights: Path, device: torch.device | str = "cpu") -> Callable[[str, Tensor], Tensor]:
    """Features of torch-fidelity's Inception-v3: (modality, uint8 `[B, C, H, W]`) -> float32 `[B, 2048]`.

    Raises Unavailable for a file that is not the published one.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    WEIGHTS.check(weights)
    # torch-fidelity unpickles without restriction; a file that also loads as plain weights runs no code.
    torch.load(weights, map_location="cpu", weights_only=True)
    # internal dtype stays float32: torch-fidelity 0.4 accepts "float64" but returns float32 features anyway.
    network: Any = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    ).to(device)

    def features(_: str, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"FID takes uint8 images, got {images.dtype}")
        out: Tensor = network(as_rgb(images))[0]
        return out

    return features


def fid(
    test: Split,
    train: Split | None,
    *,
    fingerprint: str,
    split: str = "test",
    cache: Path,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    drawn: int | None = None,
    cross: int = 0,
    weights: Path | str | None = None,
    download: bool = True,
    features: Callable[[str, Tensor], Tensor] | None = None,
    judge: str = JUDGE,
) -> FrechetMetric:
    """The metric `fid` over all image modalities. Raises Unavailable without the true weights.

    limit: pictures per side at most; drawn: how many a method draws, and so the floor; cross: how many it
    draws given a modality, over which the `limit` are spread. A picture that several
    captions share counts once on the real side. `features` and `judge` replace the network in tests; a judge
    of another name keeps such values apart.
    """
    if features is None:
        features = inception(WEIGHTS.find(weights, download), device)
    names = [m.name for m in test.spec.images]
    known: dict[str, Tensor] = {}
    real, floor, beside = {}, {}, {}
    for name in names:
        found = partial(_real_features, name=name, features=features, device=device, cache=cache)
        count = min(limit or len(test), len(test.distinct(name)))
        known[name] = found(test, count, f"{fingerprint}|{split}", judge=judge)
        real[name] = _moments(known[name]).statistics()
        if train is not None:
            beside[name] = min(drawn or count, count, len(train.distinct(name)))
            other = found(train, beside[name], f"{fingerprint}|train", judge=judge)
            floor[name] = {"fid": frechet_distance(real[name], _moments(other).statistics())}
            floor[name] |= kid_and_neighbours(other, known[name])
    return FrechetMetric(
        "fid",
        features,
        real,
        judge,
        floor,
        limit,
        min(beside.values(), default=0),
        beside=lambda name, generated: kid_and_neighbours(generated, known[name]),
        captions=[m.name for m in test.spec.texts],
        cross=min(cross, len(test)),
    )


def _real_features(
    part: Split,
    count: int,
    where: str,
    *,
    name: str,
    features: Callable[[str, Tensor], Tensor],
    device: torch.device | str,
    cache: Path,
    judge: str,
    batch: int = 64,
) -> Tensor:
    """Features `[count, D]` of different pictures, spread over the split; computed once, then cached."""
    every = part.distinct(name)
    rows = every[spread_rows(len(every), count)]

    def compute() -> dict[str, Any]:
        stored = part.stored[name]
        found = [features(name, stored[i.to(stored.device)].to(device)).cpu() for i in rows.split(batch)]
        return {"features": torch.cat(found).float().numpy()}

    key = f"{where}|{len(rows)}|{name}|{judge}"
    stored = cached_arrays(cache, "features", key, compute)["features"]
    return torch.from_numpy(stored.astype(np.float32))


def _moments(features: Tensor) -> Moments:
    found = Moments()
    for part in features.split(256):
        found.update(part)
    return found
