"""Tuples of noise in the shapes of PolyMNIST, for the scripts that compare speeds."""

from __future__ import annotations

import torch

from datasets.spec import DataSpec, Modality, Split

CPU = torch.device("cpu")
PICTURES = DataSpec(tuple(Modality(f"m{i}", "image", (3, 28, 28)) for i in range(5)))


def tuples(count: int) -> Split:
    """`count` tuples of five pictures, always the same."""
    generator = torch.Generator().manual_seed(0)
    stored = {
        m.name: torch.randint(0, 256, (count, *m.shape), generator=generator, dtype=torch.uint8)
        for m in PICTURES
    }
    return Split(PICTURES, stored, {})
