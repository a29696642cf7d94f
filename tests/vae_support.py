"""What the tests of the VAE baselines share: a small mixed spec, a batch, small instances."""

from __future__ import annotations

from typing import Any

import torch

from datasets.spec import Batch, DataSpec, Modality
from methods.base import Method, Progress
from methods.cmvae import CMVAE
from methods.mmvae import MMVAE
from methods.mmvaeplus import MMVAEPlus
from methods.moe_ebm import MoEEBM
from methods.mopoe import MoPoE
from methods.mvebm_base import MVEBMBase
from methods.mvebm_gen import MVEBMGen

METHODS: tuple[type[Method], ...] = (MMVAE, MMVAEPlus, MoPoE, MVEBMBase, MVEBMGen, CMVAE, MoEEBM)
PRIVATE: tuple[type[Method], ...] = (MMVAEPlus, MVEBMGen, CMVAE, MoEEBM)

SPEC = DataSpec(
    (
        Modality("photo", "image", (3, 12, 12)),
        Modality("sketch", "image", (1, 12, 16)),
        Modality("caption", "text", (6,), vocabulary=9),
    )
)
NOW = Progress("train", 0, 10)


def batch(n: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: torch.rand(n, *m.shape, generator=generator)
        if m.kind == "image"
        else torch.randint(0, m.vocabulary, (n, *m.shape), generator=generator)
        for m in SPEC
    }


def build(cls: type[Method], seed: int = 0, **hyper: Any) -> Method:
    """A small instance with weights from `seed`: 4 shared and 3 private dimensions, two samples."""
    torch.manual_seed(seed)
    small: dict[str, Any] = {"latent": 4, "network": "cnn", "width": 8, "private": 3, "samples": 2}
    if cls is MoPoE:
        del small["samples"]
    if cls not in PRIVATE and cls.latents == "shared":
        del small["private"]
    return cls(SPEC, **{**small, **hyper})


def seeded(method: Method, x: Batch, seed: int = 0, progress: Progress = NOW) -> torch.Tensor:
    """The training loss under a fixed seed."""
    torch.manual_seed(seed)
    loss = method(x, progress)
    return loss.total


def location(method: Method, name: str, latent: torch.Tensor) -> torch.Tensor:
    """What decoder `name` means in the data's own units: its images count in [-1, 1], its logits do not."""
    raw = method.decoders[name](latent)
    return raw / 2 + 0.5 if SPEC[name].kind == "image" else raw
