"""polydigits: the PolyMNIST recipe on data that ships with installed packages; no download.

The digits are scikit-learn's 1,797 handwritten 8 x 8 pictures, enlarged to 28 x 28; the backgrounds
are five regions of three photographs, from scikit-learn and matplotlib.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from datasets.files import as_tensor, read_image, sha256_text
from datasets.prepared import PreparedDataset, prepared_or, write_prepared
from datasets.recipe import NAMES, SIDE, SPEC, balanced_pairing, composite

log = logging.getLogger(__name__)

VERSION = 1
COUNTS = {"train": 20_000, "val": 2_000, "test": 5_000}
SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}

# Region of a photograph as (left, upper, right, lower) and the factor it is shrunk by. Regions of
# mid-grey are avoided: inverting a value near one half hardly changes it, and the digit would vanish.
REGIONS: dict[str, tuple[str, tuple[int, int, int, int], float]] = {
    "m0": ("china.jpg", (0, 338, 185, 427), 1.0),
    "m1": ("flower.jpg", (450, 0, 640, 340), 1.0),
    "m2": ("flower.jpg", (180, 95, 435, 350), 1.0),
    "m3": ("grace_hopper.jpg", (378, 0, 510, 310), 1.0),
    "m4": ("china.jpg", (330, 0, 640, 190), 1.0),
}
DIGIT_SIDE = 26
GAIN = 1.25


def enlarge(digits: np.ndarray) -> np.ndarray:
    """8 x 8 digits with values 0..16 -> 28 x 28 uint8 with smooth, thick strokes.

    The gain lifts faint grey levels above the recipe's threshold; a margin is left around the digit.
    """
    from PIL import Image

    small = np.clip(np.rint(digits * (255 / 16) * GAIN), 0, 255).astype(np.uint8)
    out = np.zeros((len(small), SIDE, SIDE), np.uint8)
    margin = (SIDE - DIGIT_SIDE) // 2
    for i, picture in enumerate(small):
        large = Image.fromarray(picture).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
        out[i, margin : margin + DIGIT_SIDE, margin : margin + DIGIT_SIDE] = np.asarray(large)
    return out


def backgrounds() -> dict[str, np.ndarray]:
    """The five background regions, RGB `[H, W, 3]` uint8, by modality."""
    from PIL import Image

    folders = {
        "china.jpg": package_files("sklearn") / "datasets" / "images",
        "flower.jpg": package_files("sklearn") / "datasets" / "images",
        "grace_hopper.jpg": package_files("matplotlib") / "mpl-data" / "sample_data",
    }
    out = {}
    for name, (photo, box, shrink) in REGIONS.items():
        path = Path(str(folders[photo] / photo))
        region = Image.fromarray(read_image(path, "reinstall scikit-learn and matplotlib")).crop(box)
        if shrink != 1.0:
            size = (round(region.width / shrink), round(region.height / shrink))
            region = region.resize(size, Image.Resampling.LANCZOS)
        out[name] = np.asarray(region)
    return out


def split_pictures(labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Indices of the digit pictures of each split: 60/15/25 within each class, disjoint."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SHARES}
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        ends = np.rint(np.cumsum(list(SHARES.values())) * len(members)).astype(int)
        for name, part in zip(SHARES, np.split(members, ends[:-1]), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


class PolyDigits(PreparedDataset):
    """Five 28 x 28 RGB modalities sharing only the digit: 20,000 train, 2,000 val, 5,000 test tuples.

    The splits use disjoint digit pictures, so that no handwriting leaks. `labels`: `digit`.
    `groups`: per modality the digit picture, because 5,000 test tuples recombine about 450 of them.
    Deterministic from `seed`; a damaged prepared copy is built anew.
    """

    name: ClassVar[str] = "polydigits"
    spec = SPEC

    def _locate(self) -> tuple[Path, dict[str, Any]]:
        recipe = sha256_text(repr((VERSION, COUNTS, SHARES, REGIONS, DIGIT_SIDE, GAIN)))[:8]
        folder = self.cache / self.name / f"seed{self.seed}-{recipe}"

        def build() -> dict[str, Any]:
            log.info("building polydigits (seed %d) in '%s'", self.seed, folder)
            return write_prepared(folder, self._build(), {"name": self.name, "seed": self.seed})

        return prepared_or(build, folder)

    def _build(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = bunch.target.astype(np.int64)
        pictures = enlarge(bunch.images)
        photos = backgrounds()
        rng = np.random.default_rng([self.seed, VERSION])
        for split, members in split_pictures(labels, rng).items():
            source, digit = balanced_pairing(labels, members, COUNTS[split], rng)
            tensors = {"digit": as_tensor(digit)}
            for name in NAMES:
                tensors[name] = as_tensor(composite(pictures[source[name]], photos[name], rng))
                tensors[f"source.{name}"] = as_tensor(source[name])
            yield split, tensors
