"""A normal prior of full covariance, fitted to draws of the posterior while a model trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

DECAY = 0.99
"""Of the running moments: they remember about a hundred batches."""

PSEUDO_ROWS = 10
"""Draws of N(0, I) per dimension that the moments start from, so that the first batches decide little."""


class FittedNormal(nn.Module):
    """p_0(z) = N(mu, L L^T), N(0, I) at first.

    Given draws z+ of the posterior, the normal prior that maximises E[log p_0(z+)] has their mean and
    covariance: the M step of EM (P1 Eqn 6), in closed form. It is the same model as a prior N(0, I) and a
    generator G(mu + L z), mu and L among its parameters.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("root", torch.eye(size))
        self.register_buffer("inverse", torch.eye(size))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("sum", torch.zeros(size))
        self.register_buffer("products", torch.zeros(size, size))

    def sample(self, n: int) -> Tensor:
        """Draws `[n, D]` from torch's global generator."""
        return self.mean + torch.randn(n, len(self.mean), device=self.mean.device) @ self.root.T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z `[..., D]`, `[...]`."""
        white = (z - self.mean) @ self.inverse.T
        log_scale = self.root.diagonal().log() + 0.5 * math.log(2 * math.pi)
        return -(0.5 * white.square() + log_scale).sum(-1)

    @torch.no_grad()
    def track(self, z: Tensor) -> None:
        """Take draws `[B, D]` of the posterior into the running moments."""
        z = z.float()
        self.rows.mul_(DECAY).add_(len(z))
        self.sum.mul_(DECAY).add_(z.sum(0))
        self.products.mul_(DECAY).add_(z.T @ z)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the prior that of the running moments."""
        one = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        pseudo = PSEUDO_ROWS * len(self.mean)
        total = self.rows.double() + pseudo
        mean = self.sum.double() / total
        covariance = (self.products.double() + pseudo * one) / total - torch.outer(mean, mean)
        root = torch.linalg.cholesky_ex(covariance)[0]  # positive definite by the pseudo rows; does not wait
        self.mean.copy_(mean)
        self.root.copy_(root)
        self.inverse.copy_(torch.linalg.solve_triangular(root, one, upper=False))


class FittedPriors(nn.Module):
    """A fitted prior for each of the latent `blocks`, by name; none for no blocks."""

    def __init__(self, blocks: Iterable[str], size: int) -> None:
        super().__init__()
        self.blocks = list(blocks)
        self.normals = nn.ModuleList(FittedNormal(size) for _ in self.blocks)

    def of(self, block: str) -> FittedNormal | None:
        """The prior of a block, else the one that `z.m0` and `z.m1` share as `z`, else None: not fitted."""
        for name in (block, block.partition(".")[0]):
            if name in self.blocks:
                return self.normals[self.blocks.index(name)]
        return None

    def track(self, latent: Mapping[str, Tensor]) -> None:
        """Take draws of the posterior into the moments; in training only."""
        for normal in self.normals:
            own = [block for name, block in latent.items() if self.of(name) is normal]
            if own and self.training:
                normal.track(torch.cat(own))

    def settle(self) -> None:
        """Make the priors those of the moments; in training only."""
        for normal in self.normals:
            if self.training:
                normal.settle()
