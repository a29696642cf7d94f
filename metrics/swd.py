"""Sliced Wasserstein distance of small patches: `swd`, a distance that sees texture and needs no network.

Every image becomes a Laplacian pyramid; of each of its levels, from full resolution down, patches of 7 x 7
pixels at random places are compared with those of real images along random directions (Karras, Aila, Laine,
Lehtinen, ICLR 2018, section 5). Fine levels see texture, noise and sharp edges, coarse ones colours and parts
of shapes. Unlike there, patches of both sides are normalised by the statistics of the real ones, not each by
its own, which would hide that generated pictures are flat; and the pyramid ends at 14 pixels, with 16 patches
per image and level and 128 directions, since pictures are small here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.spec import Split
from metrics import METRIC_VERSION
from metrics.cache import Arrays, cached_arrays
from metrics.distances import DistanceMetric, Values
from metrics.rows import spread_rows, within

PATCH = 7
PATCHES = 16
"""Patches per image and level."""

DIRECTIONS = 128
QUANTILES = 1000
"""Points of the two quantile functions at which they are compared."""

SMALLEST = 14
"""No level is smaller, in pixels."""

PICTURES = 1000
"""Images per cell, spread over the draw: sorting more would take longer than drawing them."""

REAL_PICTURES = 5000
UNIT = 1000.0
"""Distances are given in thousandths, as by Karras et al."""

LEAST = 1e-4
"""A deviation below this, far less than one grey level, is rounding: the channel does not change."""

AT_ONCE = 64
"""Images in a pyramid at once, for memory: 11 MB each at 256 x 256."""

_SEED = 20_181_030  # any constant; it fixes directions and places of patches


def _blurred(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` under the 5 x 5 binomial filter, mirrored at their edges."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device, dtype=images.dtype) / 16
    kernel = (row[:, None] * row).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), "reflect"), kernel, groups=images.shape[1])


def _doubled(images: Tensor) -> Tensor:
    """Images of twice the size: zeros between the pixels, blurred."""
    spread = images.new_zeros(*images.shape[:2], 2 * images.shape[2], 2 * images.shape[3])
    spread[:, :, ::2, ::2] = images
    return 4 * _blurred(spread)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Levels of images `[B, C, H, W]`: what halving the size loses, and at last the smallest image itself.

    Level l = G_l - up(G_(l+1)) with G_0 the images and G_(l+1) every second pixel of the blurred G_l, so
    that the image comes back when levels are doubled and added. Sizes are halved while both stay whole and
    at least `SMALLEST`. Source: Burt and Adelson, IEEE Trans. Communications 1983.
    """
    levels = []
    while min(images.shape[2:]) >= 2 * SMALLEST and not any(size % 2 for size in images.shape[2:]):
        smaller = _blurred(images)[:, :, ::2, ::2]
        levels.append(images - _doubled(smaller))
        images = smaller
    return [*levels, images]


def patches(level: Tensor, first: int) -> Tensor:
    """Patches `[B * PATCHES, C, PATCH, PATCH]` of images `[B, C, H, W]`.

    first: position of the first image in its sample; it decides where patches lie, whatever the batches.
    Raises ValueError for images smaller than a patch.
    """
    height, width = (size - PATCH + 1 for size in level.shape[2:])
    if min(height, width) < 1:
        raise ValueError(f"images of {level.shape[2]} x {level.shape[3]} pixels have no patch of {PATCH}")
    generator = torch.Generator().manual_seed(_SEED)
    places = torch.rand(first + len(level), PATCHES, 2, generator=generator)[first:].to(level.device)
    y, x = (places[..., 0] * height).long(), (places[..., 1] * width).long()
    windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [B, C, h, w, PATCH, PATCH]
    each = torch.arange(len(level), device=level.device)[:, None]
    return windows[each, :, y, x].flatten(0, 1)


def directions(channels: int, device: torch.device | str = "cpu") -> Tensor:
    """`DIRECTIONS` unit vectors `[DIRECTIONS, C * PATCH * PATCH]`, the same in every call."""
    generator = torch.Generator().manual_seed(_SEED + channels)
    drawn = torch.randn(DIRECTIONS, channels * PATCH * PATCH, generator=generator)
    return F.normalize(drawn, dim=1).to(device)


def quantiles(values: Tensor, count: int = QUANTILES) -> Tensor:
    """Empirical quantiles `[D, count]` of each row of `[D, N]`, at the middles of `count` equal shares."""
    n = values.shape[1]
    ranks = ((torch.arange(count, device=values.device) + 0.5) * n / count).long()
    return values.sort(dim=1).values[:, ranks]


@dataclass(frozen=True)
class Level:
    """Real patches of one level: mean and deviation `[C, 1, 1]` of their pixels, quantiles along directions
    `[DIRECTIONS, QUANTILES]` after both are taken out."""

    mean: Tensor
    deviation: Tensor
    quantiles: Tensor

    def distance(self, found: Tensor) -> float:
        """Mean over directions of the Wasserstein-1 distance of patches `[N, C, PATCH, PATCH]`, in 1/1000."""
        along = directions(found.shape[1], found.device)
        drawn = quantiles(along @ self.normalised(found).T)
        return UNIT * float((drawn - self.quantiles).abs().mean())

    def normalised(self, found: Tensor) -> Tensor:
        """Patches as vectors `[N, C * PATCH * PATCH]` in units of the real ones."""
        return ((found - self.mean) / self.deviation).flatten(1)

    @classmethod
    def of(cls, found: Tensor) -> Level:
        """What is kept of real patches `[N, C, PATCH, PATCH]`; a channel without change keeps its unit."""
        mean, deviation = found.mean((0, 2, 3))[:, None, None], found.std((0, 2, 3))[:, None, None]
        deviation = torch.where(deviation > LEAST, deviation, torch.ones_like(deviation))
        level = cls(mean, deviation, found.new_zeros(0))
        along = directions(found.shape[1], found.device)
        return cls(mean, deviation, quantiles(along @ level.normalised(found).T))


class PatchSample:
    """Patches of the images of one cell, level by level; `real` are the levels they are compared with."""

    def __init__(self, real: Sequence[Level] = ()) -> None:
        self.n, self._real = 0, real
        self._levels: list[list[Tensor]] = []

    def update(self, images: Tensor, folds: Tensor | None = None) -> None:
        for part in images.split(AT_ONCE):
            pyramid = laplacian_pyramid(part.float() / 255)
            self._levels = self._levels or [[] for _ in pyramid]
            for kept, level in zip(self._levels, pyramid, strict=True):
                kept.append(patches(level, self.n))
            self.n += len(part)

    def levels(self) -> list[Tensor]:
        """Patches `[N, C, PATCH, PATCH]` of each level, the finest first."""
        return [torch.cat(kept) for kept in self._levels]

    def values(self) -> Values:
        """`swd`, the mean over levels, and `swd_fine`, the first alone (the image if there is one level)."""
        found = [real.distance(drawn) for real, drawn in zip(self._real, self.levels(), strict=True)]
        return {"swd": float(np.mean(found)), "swd_fine": found[0]}

    def without(self) -> list[Values]:
        """Nothing: sorting twenty times as much would take longer than drawing the images."""
        return []


class PatchMetric(DistanceMetric):
    """`swd` and `swd_fine` of every draw's images against the real ones, named as in `DistanceMetric`.

    drawn: task -> tuples of a draw. Of more than `PICTURES` as many spread over them count, since tuples of
    conditional draws come in test order, where those of one class may be neighbours.
    """

    def __init__(
        self,
        real: dict[str, list[Level]],
        counts: dict[str, int],
        floor: dict[str, Values],
        floor_n: int,
        drawn: dict[str, int],
    ) -> None:
        super().__init__("swd", counts, "", floor, floor_n=floor_n)
        self.real = real
        self._rows = {task: spread_rows(n, PICTURES) for task, n in drawn.items()}

    def sample(self, modality: str) -> PatchSample:
        return PatchSample(self.real[modality])

    def rows(self, task: str, start: int, count: int) -> Tensor:
        return within(self._rows[task], start, count)


def _sampled(
    split: Split, modality: str, rows: Tensor, device: torch.device | str, real: Sequence[Level] = ()
) -> PatchSample:
    """The images of `modality` at `rows`, as a sample."""
    sample = PatchSample(real)
    for index in rows.split(256):
        sample.update(split.stored[modality][index].to(device))
    return sample


PARTS = ("mean", "deviation", "quantiles")


def swd(
    test: Split,
    train: Split,
    *,
    fingerprint: str,
    split: str = "test",
    cache: Path,
    device: torch.device | str = "cpu",
    joint: int = PICTURES,
    cross: int = PICTURES,
) -> PatchMetric:
    """The metric `swd` over all image modalities of `joint` unconditional and `cross` conditional tuples.

    The floor is that of as many training images as the smaller sample has, since the distance falls with
    their number. Real quantiles are computed once, then read from the cache. An image that several captions
    share counts once. Raises ValueError without image modalities, or for images without a patch.
    """
    names = [m.name for m in test.spec.images]
    if not names:
        raise ValueError("the data set has no image modality")
    drawn = {"joint": joint, "cross": min(cross, len(test))}
    beside = min(PICTURES, *drawn.values(), *(len(train.distinct(name)) for name in names))
    made = f"{METRIC_VERSION}|{PATCH}|{PATCHES}|{DIRECTIONS}|{QUANTILES}|{SMALLEST}|{_SEED}"
    real, counts, floor = {}, {}, {}
    for name in names:
        every, others = test.distinct(name), train.distinct(name)
        rows = every[spread_rows(len(every), REAL_PICTURES)]

        def arrays(name: str = name, rows: Tensor = rows) -> Arrays:
            levels = [Level.of(found) for found in _sampled(test, name, rows, device).levels()]
            return {
                f"{part}{i}": getattr(level, part).cpu().numpy()
                for i, level in enumerate(levels)
                for part in PARTS
            }

        stored = cached_arrays(cache, "patches", f"{fingerprint}|{split}|{len(rows)}|{name}|{made}", arrays)
        real[name] = [
            Level(*(torch.from_numpy(stored[f"{part}{i}"]).to(device) for part in PARTS))
            for i in range(len(stored) // len(PARTS))
        ]
        counts[name] = len(rows)
        others = others[spread_rows(len(others), beside)]
        floor[name] = _sampled(train, name, others, device, real[name]).values()
    return PatchMetric(real, counts, floor, beside, drawn)
