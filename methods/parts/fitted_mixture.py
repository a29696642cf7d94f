"""A mixture of normals as prior, fitted to draws of the posterior while a model trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from methods.parts.normal_mixture import JITTER, find_components, sample_mixture

DECAY = 0.99
"""Of the running moments: they remember about a hundred batches."""

RECENT = 5000
"""Latest draws from which the components are found."""

STARVED = 1e-9
"""Weight below which nothing belongs to a component."""


class FittedMixture(nn.Module):
    """p_0(z) = sum_k pi_k N(mu_k, S_k), N(0, I) until the components have been found.

    Found by EM from k-means on the latest `RECENT` draws z+ of the posterior, at the first `settle` that has
    them. From then on EM goes on step by step (Cappe and Moulines 2009): every batch is shared out
    among the components by p(k | z+) under the prior at hand, its moments join running sums, and the next
    `settle` makes the prior that of the sums,

        pi_k = W_k / sum_j W_j,   mu_k = s_k / W_k,   S_k = (W_k C_k + D C) / (W_k + D),

    C_k the covariance within component k and C its mean over components, weighted by pi. D such draws from
    C keep a component sound that few draws of dimension D belong to.
    EM step by step leaves a component near where it began; `settle(anew=True)` finds all of them again, in
    the draws that are the latest by then.
    All of it is float32 or better, also where networks compute in bfloat16.
    """

    def __init__(self, size: int, components: int) -> None:
        super().__init__()
        one = torch.eye(size).expand(components, size, size)
        self.size = size
        self.register_buffer("log_share", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("roots", one.clone())
        self.register_buffer("inverses", one.clone())
        self.register_buffer("weight", torch.zeros(components, dtype=torch.float64))
        self.register_buffer("sum", torch.zeros(components, size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(components, size, size, dtype=torch.float64))
        self.register_buffer("recent", torch.zeros(RECENT, size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._found: bool | None = False

    @property
    def found(self) -> bool:
        """Whether there are components; the device is asked once after loading, not in every step."""
        if self._found is None:
            self._found = bool((self.weight > 0).any())
        return self._found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._found = None

    @property
    def mean(self) -> Tensor:
        """Mean `[D]` of the whole mixture."""
        with torch.autocast(self.means.device.type, enabled=False):
            return self.log_share.exp() @ self.means

    @property
    def numbers(self) -> list[tuple[Tensor, int]]:
        """What draws depend on, each tensor with how many free numbers it holds."""
        k, d = self.means.shape
        return [(self.log_share, k - 1), (self.means, k * d), (self.roots, k * d * (d + 1) // 2)]

    def sample(self, n: int) -> Tensor:
        """Draws `[n, D]` from torch's global generator."""
        return sample_mixture(self.log_share.exp(), self.means, self.roots, n)

    def log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; mu_k, S_k) of z `[..., D]`, `[..., K]`."""
        with torch.autocast(self.means.device.type, enabled=False):
            centred = z.float().unsqueeze(-2) - self.means
            # Not `inverses @ centred`: broadcasting would copy every inverse for every z.
            white = torch.einsum("kij,...kj->...ki", self.inverses, centred)
        log_scale = self.roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * self.size * math.log(2 * math.pi)
        return self.log_share - 0.5 * white.square().sum(-1) - log_scale - constant

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z `[..., D]`, `[...]`."""
        return self.log_joint(z).logsumexp(-1)

    @torch.no_grad()
    def track(self, z: Tensor) -> None:
        """Take draws `[B, D]` of the posterior among the latest ones and into the sums of the components."""
        self.recent.copy_(torch.cat([self.recent, z.float()])[-RECENT:])
        if not self.found:
            self.seen.add_(len(z))
            return
        belongs, z = self.log_joint(z).softmax(-1).double(), z.double()
        self.weight.mul_(DECAY).add_(belongs.sum(0))
        self.sum.mul_(DECAY).add_(belongs.T @ z)
        self.products.mul_(DECAY).add_(torch.einsum("bk,bi,bj->kij", belongs, z, z))

    @torch.no_grad()
    def settle(self, anew: bool = False) -> None:
        """Make the prior that of the sums, once there are components; find them first if there are draws.

        With `anew` they are found also where there are some. Draws that are not finite find nothing: the loss
        of their step says why.
        """
        if not self.found and int(self.seen) < RECENT:
            return
        if (anew or not self.found) and bool(torch.isfinite(self.recent).all()):
            self._find()
        if not self.found:
            return
        share = self.weight / self.weight.sum()
        weight = self.weight.clamp_min(STARVED)
        fed = (self.weight > STARVED).unsqueeze(1)  # else sums are rounding, and the mean stays where it was
        means = torch.where(fed, self.sum / weight.unsqueeze(1), self.means.double())
        within = self.products / weight.view(-1, 1, 1) - means.unsqueeze(2) * means.unsqueeze(1)
        within = torch.where(fed.unsqueeze(2), within, torch.zeros_like(within))
        pooled = torch.einsum("k,kij->ij", share, within)
        pull = (self.size / (weight + self.size)).view(-1, 1, 1)
        one = torch.eye(self.size, dtype=torch.float64, device=means.device)
        roots, trouble = torch.linalg.cholesky_ex((1 - pull) * within + pull * pooled + JITTER * one)
        inverses = torch.linalg.solve_triangular(roots, one.expand_as(roots), upper=False)
        sound = trouble == 0  # else, by rounding, no covariance: the component stays as it is
        # New tensors, since the graph of a loss may still hold the old ones.
        self.log_share = share.clamp_min(STARVED).log().to(self.log_share.dtype)
        self.means = torch.where(sound.unsqueeze(1), means.float(), self.means)
        self.roots, self.inverses = (
            torch.where(sound.view(-1, 1, 1), value.float(), buffer).contiguous()
            for buffer, value in ((self.roots, roots), (self.inverses, inverses))
        )

    def _find(self) -> None:
        """Sums of the components that EM from k-means finds in the latest draws."""
        z = self.recent.double().cpu()
        belongs = find_components(z, len(self.means), seed=0).belongs
        self.weight.copy_(belongs.sum(0))
        self.sum.copy_(belongs.T @ z)
        self.products.copy_(torch.einsum("bk,bi,bj->kij", belongs, z, z))
        self._found = True

    def terms(self) -> dict[str, Tensor]:
        """For the log: mean |mean|, mean log scale, exp(entropy of pi): how many components are in use."""
        entropy = -(self.log_share.exp() * self.log_share).sum()
        log_scale = self.roots.diagonal(dim1=-2, dim2=-1).log().mean()
        return {
            "prior_mean": self.mean.abs().mean(),
            "prior_log_scale": log_scale,
            "prior_components": entropy.exp(),
        }
