"""A normal prior of full covariance, fitted to draws of the posterior while a model trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from methods.parts.fitted_mixture import DECAY, FittedMixture
from methods.parts.normal_mixture import JITTER

FIRST = 10
"""Draws of N(0, I) per dimension that the moments start from; they fade like all others."""


class FittedNormal(nn.Module):
    """p_0(z) = N(mu, L L^T), N(0, I) at first.

    Given draws z+ of the posterior, the normal prior that maximises E[log p_0(z+)] has their mean and
    covariance: the M step of EM (P1 Eqn 6), in closed form. Here both are running moments. For X it is the
    same model as a prior N(0, I) and a generator G(mu + L z), mu and L among its parameters; the latent chain
    differs, since it takes its steps in z.
    All of it is float32 or better, also where networks compute in bfloat16.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        one = torch.eye(size, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("root", torch.eye(size))
        self.register_buffer("inverse", torch.eye(size))
        self.register_buffer("weight", torch.tensor(float(FIRST * size), dtype=torch.float64))
        self.register_buffer("sum", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("products", FIRST * size * one)

    def sample(self, n: int) -> Tensor:
        """Draws `[n, D]` from torch's global generator."""
        with torch.autocast(self.mean.device.type, enabled=False):
            return self.mean + torch.randn(n, len(self.mean), device=self.mean.device) @ self.root.T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z `[..., D]`, `[...]`."""
        with torch.autocast(self.mean.device.type, enabled=False):
            white = (z.float() - self.mean) @ self.inverse.T
        log_scale = self.root.diagonal().log() + 0.5 * math.log(2 * math.pi)
        return -(0.5 * white.square() + log_scale).sum(-1)

    @torch.no_grad()
    def track(self, z: Tensor) -> None:
        """Take draws `[B, D]` of the posterior into the running moments."""
        z = z.double()
        self.weight.mul_(DECAY).add_(len(z))
        self.sum.mul_(DECAY).add_(z.sum(0))
        self.products.mul_(DECAY).add_(z.T @ z)

    @torch.no_grad()
    def settle(self, anew: bool = False) -> None:
        """Make the prior that of the running moments. It stays where they are no covariance, by rounding.

        `anew` is for mixtures: moments of one normal have no beginning that they could be stuck at.
        """
        one = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        mean = self.sum / self.weight
        covariance = self.products / self.weight - torch.outer(mean, mean) + JITTER * one
        root, trouble = torch.linalg.cholesky_ex(covariance)
        inverse = torch.linalg.solve_triangular(root, one, upper=False)
        sound = trouble == 0
        for buffer, value in ((self.mean, mean), (self.root, root), (self.inverse, inverse)):
            buffer.copy_(torch.where(sound, value.to(buffer.dtype), buffer))

    @property
    def numbers(self) -> list[tuple[Tensor, int]]:
        """What draws depend on, each tensor with how many free numbers it holds."""
        d = len(self.mean)
        return [(self.mean, d), (self.root, d * (d + 1) // 2)]

    def terms(self) -> dict[str, Tensor]:
        """For the log: mean |mu| and mean log scale."""
        return {"prior_mean": self.mean.abs().mean(), "prior_log_scale": self.root.diagonal().log().mean()}


class FittedPriors(nn.Module):
    """A fitted prior for each of the latent `blocks`, by name; none for no blocks.

    A normal distribution, or a mixture of several `components`.
    """

    def __init__(self, blocks: Iterable[str], size: int, components: int = 1) -> None:
        super().__init__()
        self.blocks = list(blocks)
        self.normals = nn.ModuleList(
            FittedNormal(size) if components == 1 else FittedMixture(size, components) for _ in self.blocks
        )

    def of(self, block: str) -> FittedNormal | FittedMixture | None:
        """The prior of a block, else the one that `z.m0` and `z.m1` share as `z`, else None: not fitted."""
        for name in (block, block.partition(".")[0]):
            if name in self.blocks:
                return self.normals[self.blocks.index(name)]
        return None

    def track(self, *draws: Mapping[str, Tensor]) -> None:
        """Take draws of the posterior into the moments, all as one batch; in training only."""
        for normal in self.normals:
            own = [z for latent in draws for name, z in latent.items() if self.of(name) is normal]
            if own and self.training:
                normal.track(torch.cat(own))

    def settle(self, anew: bool = False) -> None:
        """Make the priors those of the moments, mixtures with components found `anew`; in training only."""
        for normal in self.normals:
            if self.training:
                normal.settle(anew)

    @property
    def numbers(self) -> list[tuple[Tensor, int]]:
        """Those of all fitted priors."""
        return [pair for prior in self.normals for pair in prior.numbers]

    def terms(self) -> dict[str, Tensor]:
        """For the log, of every fitted prior."""
        pairs = zip(self.blocks, self.normals, strict=True)
        return {f"{name}.{block}": value for block, prior in pairs for name, value in prior.terms().items()}
