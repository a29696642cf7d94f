"""What the tests of the VAE baselines share: a small mixed spec, a batch, small instances."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from datasets.spec import Batch, DataSpec, Modality
from methods.base import Method, Progress
from methods.codevae import CoDEVAE
from methods.helvae import HELVAE
from methods.mmvae import MMVAE
from methods.mmvaeplus import MMVAEPlus
from methods.mohelvae import MoHELVAE
from methods.mopoe import MoPoE
from methods.mvebm_base import MVEBMBase
from methods.mvebm_gen import MVEBMGen
from methods.mwbvae import MWBVAE

METHODS: tuple[type[Method], ...] = (
    MMVAE,
    MMVAEPlus,
    MoPoE,
    MVEBMBase,
    MVEBMGen,
    MWBVAE,
    CoDEVAE,
    HELVAE,
    MoHELVAE,
)
PRIVATE = (MMVAEPlus, MVEBMGen)

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
    small = {name: value for name, value in small.items() if name in inspect.signature(cls).parameters}
    return cls(SPEC, **{**small, **hyper})


def doubled(x: Batch) -> Batch:
    """The batch with its images in float64, for a method in float64."""
    return {n: t.double() if t.is_floating_point() else t for n, t in x.items()}


def gradients(method: Method, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """d value / d parameter by name, zero where there is none."""
    named = dict(method.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)
    }


def seeded(method: Method, x: Batch, seed: int = 0, progress: Progress = NOW) -> torch.Tensor:
    """The training loss under a fixed seed."""
    torch.manual_seed(seed)
    loss = method(x, progress)
    return loss.total


def location(method: Method, name: str, latent: torch.Tensor) -> torch.Tensor:
    """What decoder `name` means in the data's own units: its images count in [-1, 1], its logits do not."""
    raw = method.decoders[name](latent)
    return raw / 2 + 0.5 if SPEC[name].kind == "image" else raw
