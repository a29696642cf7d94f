"""Two pictures and a caption of one digit: a toy data set of two kinds of modality.

Reached as `mixed_data:MixedData` with this folder on the path.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from datasets.spec import Dataset, DataSpec, Modality, Split

SIDE, WORDS, LENGTH = 16, 24, 6


class MixedData(Dataset):
    """A photo and a sketch that share a digit's pattern, and a caption that spells the digit."""

    name = "mixed"
    spec = DataSpec(
        (
            Modality("photo", "image", (3, SIDE, SIDE)),
            Modality("sketch", "image", (3, SIDE, SIDE)),
            Modality("caption", "text", (LENGTH,), vocabulary=WORDS),
        )
    )
    counts = {"train": 320, "val": 60, "test": 80}

    def prepare(self) -> None:
        pass

    @property
    def fingerprint(self) -> str:
        test = self.split("test").stored
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in test.values())).hexdigest()[:16]

    def split(self, name: Literal["train", "val", "test"]) -> Split:
        n = self.counts[name]
        generator = torch.Generator().manual_seed(len(name))
        patterns = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(5)).round()
        patterns = patterns.repeat_interleave(4, 2).repeat_interleave(4, 3)
        digit = torch.arange(n) % 10
        stored = {}
        for contrast, modality in ((0.5, "photo"), (0.8, "sketch")):
            noise = torch.rand(n, 3, SIDE, SIDE, generator=generator)
            stored[modality] = ((contrast * patterns[digit] + 0.2 * noise) * 255).to(torch.uint8)
        # "a digit <name> <filler> <end> <padding>": ids 0 to 2 are special.
        filler = torch.randint(15, WORDS, (n,), generator=generator)
        fixed = [torch.full((n,), word) for word in (3, 4)]
        ends = [torch.full((n,), 2), torch.full((n,), 1)]
        stored["caption"] = torch.stack([*fixed, 5 + digit, filler, *ends], 1)
        return Split(self.spec, stored, {"digit": digit})
