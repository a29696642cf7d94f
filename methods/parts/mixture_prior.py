"""A learned mixture as prior of the shared latent, and which of its clusters data use (METHODS.md 2.9)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import UserError
from methods.parts.latents import Diagonal, Family
from methods.parts.priors import Prior


class MixturePrior(nn.Module):
    """p(z) = sum_c pi_c p(z | c), p(z | c) of `family` at the learned centre mu_c, with the scale of a = 0.

    The weights pi = softmax(logits) are learned too and start equal; centres start uniform in
    (-spread, spread). Raises UserError for no cluster or a negative spread. Source: CMVAE, section 2.9.
    """

    def __init__(self, size: int, family: Family, clusters: int, spread: float) -> None:
        super().__init__()
        if clusters < 1 or spread < 0:
            raise UserError(
                f"clusters={clusters}, spread={spread} is impossible; give at least 1 cluster, spread >= 0"
            )
        self.unit = Prior(size, family)
        self.centres = nn.Parameter(torch.empty(clusters, size).uniform_(-spread, spread))
        self.logits = nn.Parameter(torch.zeros(clusters))

    def component(self, centres: Tensor) -> Diagonal:
        """p(z | c) for clusters with these centres `[..., size]`."""
        unit = self.unit.distribution
        return Diagonal(centres, unit.scale.expand_as(centres), unit.laplace)

    def log_joint(self, z: Tensor) -> Tensor:
        """log pi_c + log p(z | c) for z `[..., size]`; returns `[..., clusters]`."""
        return self.logits.log_softmax(0) + self.component(self.centres).log_prob(z.unsqueeze(-2))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) `[...]`.

        The paper's sum_c p(c | z) [log p(z | c) + log pi_c - log p(c | z)] is this very number, since every
        bracket is log p(z).
        """
        return self.log_joint(z).logsumexp(-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z) `[..., clusters]`, sums to one."""
        return self.log_joint(z).softmax(-1)

    def sample(self, n: int) -> Tensor:
        """c ~ pi, z ~ p(z | c): `n` draws `[n, size]`, from all clusters."""
        chosen = torch.multinomial(self.logits.softmax(0), n, replacement=True)
        return self.component(self.centres[chosen]).rsample()

    def kept(self, z: Tensor, beta: float) -> Tensor:
        """Clusters that survive `prune` on held-out latents `[N, size]`, bool `[clusters]`."""
        conditional = self.component(self.centres).log_prob(z.unsqueeze(-2))
        return prune(conditional, self.logits.log_softmax(0), beta, z.shape[-1])

    def vote(self, z: Tensor, kept: Tensor) -> Tensor:
        """The cluster `[B]`, of those in `kept`, that most of M modalities choose, by their z `[M, B, size]`.

        A modality chooses its most responsible cluster. A tie goes to the tied cluster with the largest sum
        of responsibilities.
        """
        p = self.log_joint(z).masked_fill(~kept, -math.inf).softmax(-1)
        ballots = F.one_hot(p.argmax(-1), len(kept)).sum(0)
        return (ballots + p.sum(0) / (len(z) + 1)).argmax(-1)


def cluster_score(log_joint: Tensor, beta: float, size: int) -> float:
    """beta mean_i H(p(c | z_i)) / log C - mean_i log p(z_i) / size; less is better (METHODS.md 2.9).

    log_joint `[N, C]` is log pi_c + log p(z_i | c) of the C clusters that are left; H = 0 for one cluster.
    """
    p = log_joint.softmax(1)
    entropy = -torch.special.xlogy(p, p).sum(1) / math.log(max(2, p.shape[1]))
    return float(beta * entropy.mean() - log_joint.logsumexp(1).mean() / size)


def prune(conditional: Tensor, log_weights: Tensor, beta: float, size: int) -> Tensor:
    """Which clusters to keep, bool `[C]`: the set of least `cluster_score` among those met while the cluster
    with the smallest sum of responsibilities is dropped again and again (METHODS.md 2.9).

    conditional: log p(z_i | c) `[N, C]`; log_weights: log pi_c `[C]`, renormalised over what is left. For
    clustering scores alone: training and sampling use all clusters.
    """
    conditional, log_weights = conditional.detach(), log_weights.detach()
    left = torch.arange(len(log_weights), device=log_weights.device)
    best, chosen = math.inf, left
    while len(left):
        log_joint = conditional[:, left] + log_weights[left].log_softmax(0)
        score = cluster_score(log_joint, beta, size)
        if score < best:
            best, chosen = score, left
        least = log_joint.softmax(1).sum(0).argmin()
        left = torch.cat([left[:least], left[least + 1 :]])
    kept = torch.zeros_like(log_weights, dtype=torch.bool)
    kept[chosen] = True
    return kept
