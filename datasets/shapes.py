"""shapes: captioned pictures of one or two drawn shapes, with an exact oracle; no download.

A stand-in for CUB and MSCOCO (METHODS 4.4): the same interface, known attributes, numbers of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.files import as_tensor, sha256_text
from datasets.prepared import PreparedDataset, prepared_or, write_prepared
from datasets.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    NAMES,
    RADII,
    SIDE,
    TEMPLATES,
    VOCABULARY,
    draw_pictures,
    draw_scenes,
    read_captions,
    write_captions,
)
from datasets.spec import DataSpec, Modality, Split

log = logging.getLogger(__name__)

VERSION = 1  # of the drawing, beside the constants of `scenes`
COUNTS = {"train": 10_000, "val": 1_000, "test": 1_000}
NOTE = "drawn shapes, a stand-in for CUB and MSCOCO: no number compares with published ones"


class Oracle:
    """What captions say, exactly: the attributes, their values, and how to read them from token ids."""

    attributes: ClassVar[dict[str, tuple[str, ...]]] = ATTRIBUTES

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Attribute -> codes int64 `[N]` from captions `[N, length]`; -1 where a caption cannot be read."""
        codes = torch.from_numpy(read_captions(tokens.cpu().numpy()))
        return {name: codes[:, i] for i, name in enumerate(NAMES)}


class Shapes(PreparedDataset):
    """64x64 pictures of one or two shapes and their captions: 10,000 train, 1,000 val, 1,000 test pairs.

    Objects fill two slots from left to right; the right one may be `none`. `labels`: the attributes of
    `scenes.ATTRIBUTES`. Deterministic from `seed`; a damaged prepared copy is built anew.
    """

    name: ClassVar[str] = "shapes"
    spec = DataSpec((Modality("image", "image", (3, SIDE, SIDE)), VOCABULARY.modality()))
    oracle = Oracle()

    def sentence(self, tokens: Tensor) -> str:
        return VOCABULARY.decode(tokens.tolist())

    def _split(self, tensors: dict[str, Tensor]) -> Split:
        split = super()._split(tensors)
        # In the order of the attributes: the first one is what the probes ask for.
        return Split(split.spec, split.stored, {name: split.labels[name] for name in NAMES})

    def _locate(self) -> tuple[Path, dict[str, Any]]:
        recipe = sha256_text(repr((VERSION, COUNTS, ATTRIBUTES, COLOURS, BACKGROUNDS, RADII, TEMPLATES)))[:8]
        folder = self.cache / self.name / f"seed{self.seed}-{recipe}"

        def build() -> dict[str, Any]:
            log.info("building shapes (seed %d) in '%s'", self.seed, folder)
            info = {"name": self.name, "seed": self.seed, "notes": [NOTE], "words": list(VOCABULARY.words)}
            return write_prepared(folder, self._build(), info)

        return prepared_or(build, folder)

    def _build(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        rng = np.random.default_rng([self.seed, VERSION])
        for split, count in COUNTS.items():
            scenes = draw_scenes(count, rng)
            tensors = {name: as_tensor(scenes[:, i].copy()) for i, name in enumerate(NAMES)}
            tensors["caption"] = as_tensor(write_captions(scenes, rng))
            tensors["image"] = as_tensor(draw_pictures(scenes, rng))
            yield split, tensors
