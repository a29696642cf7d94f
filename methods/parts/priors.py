"""Simple priors over latents: the families at a = 0, with fixed or learned scales, and r_n of MMVAE+."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datasets.spec import DataSpec
from methods.parts.latents import Diagonal, Family, scale_of


class Prior(nn.Module):
    """Location 0 and the family's scale of a raw vector a, which is 0 or, with `learn`, trained from 0.

    a = 0 gives scale 1 for `laplace` and `gaussian`, 0.693 for `normal` (METHODS.md 1.4). A learned
    Laplace scale keeps its sum, so only its distribution over dimensions is learned.
    """

    raw: Tensor

    def __init__(self, size: int, family: Family, learn: bool = False) -> None:
        super().__init__()
        self.family: Family = family
        if learn:
            self.raw = nn.Parameter(torch.zeros(size))
        else:
            self.register_buffer("raw", torch.zeros(size))

    @property
    def distribution(self) -> Diagonal:
        """The prior as a distribution over `[size]`."""
        scale = scale_of(self.raw, self.family)
        return Diagonal(torch.zeros_like(scale), scale, self.family == "laplace")

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) for z `[..., size]`; returns `[...]`."""
        return self.distribution.log_prob(z)

    def rsample(self, *leading: int) -> Tensor:
        """Draws `[*leading, size]`, reparametrised where the scale is learned."""
        return self.distribution.rsample(*leading)


def auxiliary_priors(spec: DataSpec, private: int, family: Family) -> nn.ModuleDict:
    """r_n(w_n) of MMVAE+ for every modality: location 0, learned scale (METHODS.md 2.6)."""
    return nn.ModuleDict({m.name: Prior(private, family, learn=True) for m in spec})


def cross_private(own: Tensor, auxiliaries: nn.ModuleDict) -> dict[str, Tensor]:
    """Private latents that decoder n sees when expert m gave z: w_n for m = n, else a draw of r_n.

    own `[M, K, B, D_w]` holds w_m ~ q_m(w_m | x_m) in the order of `auxiliaries`. Returns modality name
    -> `[M, K, B, D_w]`, the first index being m.
    """
    filled = {}
    for n, (name, auxiliary) in enumerate(auxiliaries.items()):
        drawn = auxiliary.rsample(*own.shape[:-1])
        filled[name] = torch.cat([drawn[:n], own[n : n + 1], drawn[n + 1 :]])
    return filled
