"""Diagonal experts and the networks that give them: the latent layout of the VAE family (METHODS.md 1.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import Modality, UserError
from methods.parts.networks.build import build_encoder
from methods.parts.networks.common import at_least_float32

Family = Literal["laplace", "normal", "gaussian"]
FAMILIES: tuple[Family, ...] = ("laplace", "normal", "gaussian")

SCALE_FLOOR = 1e-6
"""Smallest scale. The published 1e-20 overflows in float32 once a density is differentiated."""

LOG_VARIANCE_LIMIT = 20.0
"""Bound on |a| in sigma = exp(a / 2), our choice: far beyond it densities overflow in float32."""


@dataclass(frozen=True)
class Diagonal:
    """Independent Laplace or normal coordinates; `location` and `scale` are `[..., D]`.

    `scale` is Laplace's b or the standard deviation.
    """

    location: Tensor
    scale: Tensor
    laplace: bool = False

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z `[..., D]` summed over D, with leading dimensions broadcast."""
        u = (z - self.location) / self.scale
        if self.laplace:
            return -(u.abs() + torch.log(2 * self.scale)).sum(-1)
        return -(0.5 * u.square() + torch.log(self.scale) + 0.5 * math.log(2 * math.pi)).sum(-1)

    def rsample(self, *leading: int) -> Tensor:
        """Reparametrised draws `[*leading, ..., D]` from torch's global generator."""
        noise = self.location.new_empty(*leading, *self.location.shape)
        if self.laplace:
            # A difference of exponentials meets no logarithm of zero, unlike the inverse of the distribution.
            noise = noise.exponential_() - torch.empty_like(noise).exponential_()
        else:
            noise = noise.normal_()
        return self.location + self.scale * noise

    def detach(self) -> Diagonal:
        """The same distribution with constant parameters."""
        return Diagonal(self.location.detach(), self.scale.detach(), self.laplace)

    @classmethod
    def join(cls, parts: Sequence[Diagonal]) -> Diagonal:
        """The distribution of a batch from those of its consecutive parts `[B_i, D]`."""
        location, scale = torch.cat([p.location for p in parts]), torch.cat([p.scale for p in parts])
        return cls(location, scale, parts[0].laplace)


def check_family(family: str) -> Family:
    """`family` if it exists, else UserError."""
    if family not in FAMILIES:
        raise UserError(f"family '{family}' is unknown; choose 'laplace', 'normal' or 'gaussian'")
    return family  # type: ignore[return-value]


def scale_of(raw: Tensor, family: Family) -> Tensor:
    """Scale from a raw network output a `[..., D]` (METHODS.md 1.4; the lineages are not interchangeable).

    laplace:  b = D softmax(a), so that the scales of a block always sum to D (MMVAE lineage)
    normal:   sigma = softplus(a), so that a = 0 means 0.693, not 1 (MMVAE lineage on CUB)
    gaussian: sigma = exp(a / 2), a a log-variance (MoPoE lineage)
    """
    if family == "laplace":
        return raw.shape[-1] * F.softmax(raw, -1) + SCALE_FLOOR
    if family == "normal":
        return F.softplus(raw) + SCALE_FLOOR
    return (0.5 * raw.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)).exp()


def diagonal(location: Tensor, raw: Tensor, family: Family) -> Diagonal:
    """A distribution of `family` from a network's two outputs, in float32 or better."""
    location, raw = at_least_float32(location), at_least_float32(raw)
    return Diagonal(location, scale_of(raw, family), family == "laplace")


class Expert(NamedTuple):
    """q_m(z | x_m), and q_m(w_m | x_m) where the layout has private latents."""

    z: Diagonal
    w: Diagonal | None = None

    def map(self, change: Callable[[Diagonal], Diagonal]) -> Expert:
        """The same expert with `change` applied to both distributions."""
        return Expert(change(self.z), None if self.w is None else change(self.w))

    def detach(self) -> Expert:
        return self.map(Diagonal.detach)

    @classmethod
    def join(cls, parts: Sequence[Expert]) -> Expert:
        """The expert of a batch from those of its consecutive parts."""
        blocks = zip(*parts, strict=True)
        return cls(*(None if ds[0] is None else Diagonal.join(ds) for ds in blocks))


class ExpertEncoder(nn.Module):
    """x_m `[B, *shape]` -> Expert over z `[B, latent]` and, if `private` > 0, over w_m `[B, private]`.

    `resnet` has one tower for w and one for z as published; `cnn` has one tower whose output is split in the
    order [w, z], as is the output of the text network of either. Softmax scales are normalised within each
    block (METHODS.md 1.4, 1.5).
    """

    def __init__(
        self,
        modality: Modality,
        latent: int,
        private: int,
        family: Family,
        network: str,
        width: int,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.family, self.latent, self.private = family, latent, private
        separate = private > 0 and network == "resnet" and modality.kind == "image"
        blocks = [private, latent] if separate else [private + latent]
        self.towers = nn.ModuleList(
            build_encoder(modality, size, network, width, batch_norm, 0 if separate else private)
            for size in blocks
        )

    def forward(self, x: Tensor) -> Expert:
        outputs = [tower(x) for tower in self.towers]
        location = torch.cat([o[0] for o in outputs], -1)
        raw = torch.cat([o[1] for o in outputs], -1)
        w_location, z_location = location.split([self.private, self.latent], -1)
        w_raw, z_raw = raw.split([self.private, self.latent], -1)
        z = diagonal(z_location, z_raw, self.family)
        return Expert(z, diagonal(w_location, w_raw, self.family) if self.private else None)
