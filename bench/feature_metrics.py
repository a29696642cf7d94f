"""Metrics that need the published weights of a feature network: which they are, and how they are built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datasets.spec import Dataset, DataSpec, Split
from metrics.clip import WEIGHTS, ClipMetric, applies, openai_clip
from metrics.fid import fid
from metrics.protocol import EventMetric
from metrics.weights import Unavailable

if TYPE_CHECKING:
    from bench.config import Plan

INCEPTION_FAMILIES = ("fid", "kid", "precision", "recall")
"""What the metric `fid` scores, of the same features."""

FID_HEADLINES = {
    "joint": tuple(f"{family}_uncond" for family in INCEPTION_FAMILIES),
    "cross": tuple(f"{f}_{kind}" for f in INCEPTION_FAMILIES for kind in ("cond", "cond_cross", "t2i")),
}
CLIP_HEADLINES = {"joint": ("clip_uncond",), "cross": ("clip_t2i", "clip_i2t")}
"""Task -> the scores that a table would look for."""


def apply_to(spec: DataSpec, metric: str) -> bool:
    """Whether a score means anything on this data: those of pictures and captions need one of each."""
    return applies(spec) or not (metric.startswith("clip_") or metric.endswith("_t2i"))


def feature_metric(
    name: str,
    data: Dataset,
    plan: Plan,
    test: Split,
    train: Split,
    *,
    cache: Path,
    device: torch.device,
    weights: dict[str, Path | str | None],
    download: bool,
    seed: int,
) -> EventMetric | None:
    """`fid` or `clip` on a data set; None where it has no meaning, Unavailable without the weights.

    weights: metric -> path of its weights, if one was given.
    """
    where = {"fingerprint": data.fingerprint, "split": plan.split, "cache": cache}
    if name == "fid":
        if not data.spec.images:
            raise Unavailable("the data set has no image modality")
        return fid(
            test,
            train,
            limit=plan.fid_n,
            drawn=plan.joint,
            cross=plan.cross,
            weights=weights.get("fid"),
            download=download,
            device=device,
            **where,  # type: ignore[arg-type]
        )
    if not applies(data.spec):
        return None
    encoder = openai_clip(WEIGHTS.find(weights.get("clip"), download), device)
    return ClipMetric(encoder, test, data.sentence, max(plan.joint, plan.cross), seed=seed, **where)  # type: ignore[arg-type]
