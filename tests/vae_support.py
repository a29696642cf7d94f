"""What the tests of the VAE baselines share: a small mixed spec, a batch, small instances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Laplace

from bench.config import class_signature
from datasets.spec import Batch, DataSpec, Modality
from methods.base import Loss, Method, Progress
from methods.cmvae import CMVAE
from methods.codevae import CoDEVAE
from methods.helvae import HELVAE
from methods.mmjsd import MMJSD
from methods.mmvae import MMVAE
from methods.mmvaeplus import MMVAEPlus
from methods.moe_ebm import MoEEBM
from methods.mohelvae import MoHELVAE
from methods.mopoe import MoPoE
from methods.mvae import MVAE
from methods.mvebm_base import MVEBMBase
from methods.mvebm_gen import MVEBMGen
from methods.mvtcae import MVTCAE
from methods.mwbvae import MWBVAE

PRIVATE: tuple[type[Method], ...] = (MMVAEPlus, MVEBMGen, CMVAE, MoEEBM)
METHODS: tuple[type[Method], ...] = (
    *(MMVAE, MoPoE, MVEBMBase, MVAE, MMJSD, MVTCAE, MWBVAE, CoDEVAE, HELVAE, MoHELVAE),
    *PRIVATE,
)

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
    small = {name: value for name, value in small.items() if name in class_signature(cls)[0]}
    return cls(SPEC, **{**small, **hyper})


def gradients(method: Method, value: Tensor) -> dict[str, Tensor]:
    """d value / d parameter by name, zero where there is none."""
    named = dict(method.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)
    }


def seeded(method: Method, x: Batch, seed: int = 0, progress: Progress = NOW) -> Tensor:
    """The training loss under a fixed seed."""
    torch.manual_seed(seed)
    loss = method(x, progress)
    return loss.total


def location(method: Method, name: str, latent: Tensor) -> Tensor:
    """What decoder `name` means in the data's own units: its images count in [-1, 1], its logits do not."""
    raw = method.decoders[name](latent)
    return raw / 2 + 0.5 if SPEC[name].kind == "image" else raw


def exact(x: Batch) -> Batch:
    """The same batch in float64, tokens as they are."""
    return {n: t.double() if t.is_floating_point() else t for n, t in x.items()}


def moments(method: Method, x: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every normal expert, from the raw outputs of its network."""
    found = {}
    for m in SPEC:
        mean, log_variance = method.encoders[m.name].towers[0](
            2 * x[m.name] - 1 if m.kind == "image" else x[m.name]
        )
        found[m.name] = mean, log_variance.exp()
    return found


def log_density(method: Method, x: Batch, name: str, z: Tensor) -> Tensor:
    """log p_m(x_m | z) of one modality, for the default likelihood, by torch.distributions."""
    out = location(method, name, z)
    if SPEC[name].kind == "text":
        return Categorical(logits=out).log_prob(x[name]).sum(-1)
    return Laplace(out, 0.75).log_prob(x[name]).sum((-1, -2, -3))


def assert_same_descent(method: Method, loss: Tensor, reference: Tensor, but: str = "-") -> None:
    """Both losses, and their gradients to every parameter whose name starts otherwise, agree in float64."""
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-8)
    compared = [(n, p) for n, p in method.named_parameters() if not n.startswith(but)]
    names, parameters = zip(*compared, strict=True)
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, reference))
    for name, own, other in zip(names, ours, theirs, strict=True):
        message = f"gradient of {name}"
        small = 5e-8 * max(1.0, float(other.abs().max()))
        torch.testing.assert_close(
            own, other, rtol=1e-6, atol=small, msg=lambda text, m=message: f"{m}: {text}"
        )


def seeded_parts(method: Method, x: Batch) -> dict[str, Tensor]:
    """The parts of the loss on a batch, drawn with seed 0."""
    torch.manual_seed(0)
    loss = method(x, NOW)
    assert isinstance(loss, Loss)
    return loss.parts


def assert_same_energy_descent(method: Any, part: Tensor, reference: Tensor) -> None:
    """The part that trains U has the value of `reference` and its gradient, and trains nothing else."""
    torch.testing.assert_close(part, reference, rtol=1e-10, atol=1e-10)
    energy = list(method.prior.energy.parameters())
    ours, theirs = (
        torch.autograd.grad(v, energy, retain_graph=True, allow_unused=True) for v in (part, reference)
    )
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-10 * float(other.abs().max()))
    own_ids = {id(p) for p in energy}
    rest = [p for p in method.parameters() if id(p) not in own_ids]
    assert all(g is None for g in torch.autograd.grad(part, rest, retain_graph=True, allow_unused=True))
