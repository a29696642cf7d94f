"""Deterministic encodings of the tuples of a split, batch by batch."""

from __future__ import annotations

from typing import Literal

import torch

from bench.device import autocast
from bench.generate import BATCH
from datasets.spec import Split, to_float
from methods.base import Diverged, Method
from metrics.protocol import Encodings


def encodings(
    method: Method,
    split: Split,
    rows: torch.Tensor,
    given: tuple[str, ...],
    name: Literal["train", "test"],
    device: torch.device | str,
    precision: str = "fp32",
    batch_size: int = BATCH,
) -> Encodings:
    """Deterministic latents (float32, on the CPU) of the tuples at `rows`, with `given` observed."""
    parts: dict[str, list[torch.Tensor]] = {}
    device = torch.device(device)
    where = next(iter(split.stored.values())).device
    for index in rows.to(where).split(batch_size):
        batch = {n: split.stored[n][index].to(device) for n in given}
        batch = {n: to_float(t) if split.spec[n].kind == "image" else t for n, t in batch.items()}
        with torch.no_grad(), autocast(device, precision):
            latents = method.encode(batch)
        for key, value in latents.items():
            if not bool(torch.isfinite(value).all()):
                raise Diverged(f"the encoding '{key}' given {'+'.join(given)} is not finite")
            parts.setdefault(key, []).append(value.float().cpu())
    rows = rows.to(where)
    return Encodings(
        name,
        given,
        {key: torch.cat(values) for key, values in parts.items()},
        {key: t[rows].cpu() for key, t in split.labels.items()},
        {key: t[rows].cpu() for key, t in split.groups.items()},
    )
