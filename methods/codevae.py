"""CoDE-VAE: consensus of dependent experts for every subset, with learned weights of the subsets' ELBOs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, ParamGroup, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.pooling import consensus
from methods.parts.posteriors import stack, subsets


class CoDEVAE(NormalVAE):
    """Consensus of Dependent Experts VAE; Mancisidor et al. 2025, METHODS.md 2.12.

    q_S(z | X_S) is the consensus of the normal experts in S whose errors have covariances
    rho sigma_i sigma_j; it has no prior expert, and at rho = 0 it is their product. Every non-empty S
    draws its own z and decodes all modalities, and with learned weights pi = softmax(logits)

        L = sum_S pi_S [E_{q_S} sum_m lambda_m log p_m(x_m | z) - beta KL(q_S || N(0, I))] + entropy H(pi)

    is ascended. At 1000 the entropy keeps the weights nearly uniform.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and, all section 2.12,
        beta: weight of the KL.                correlation: rho, at least 0 and below 1.
        entropy: weight of the entropy of pi.
        decoded: subsets that are decoded per example and step, drawn anew without replacement and weighted
            so that L keeps its expectation; 0 for all 2^M - 1, as published. The KLs are always all there.
    """

    citation = (
        "Mancisidor, Jenssen, Yu, Kampffmeyer: Aggregation of dependent expert distributions in multimodal "
        "variational autoencoders, ICML 2025"
    )

    def __init__(
        self,
        spec: DataSpec,
        *,
        correlation: float = 0.5,
        entropy: float = 1000.0,
        decoded: int = 0,
        lr: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(spec, lr=lr, **settings)
        self.subsets = subsets(spec.names)
        if not 0 <= correlation < 1:
            raise UserError(f"correlation={correlation} is impossible; give at least 0 and less than 1")
        if not 0 <= decoded <= len(self.subsets):
            raise UserError(f"decoded={decoded} is impossible; give 0 (all) to {len(self.subsets)} subsets")
        self.correlation, self.entropy = correlation, entropy
        self.decoded = decoded or len(self.subsets)
        self.logits = nn.Parameter(torch.zeros(len(self.subsets)))

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = {name: e.z for name, e in self.experts(x).items()}
        every = stack([consensus([experts[n] for n in s], self.correlation) for s in self.subsets])
        log_pi = self.logits.log_softmax(0)
        pi, entropy = log_pi.exp(), -(log_pi.exp() * log_pi).sum()

        chosen = self.draw_subsets(len(every.location[0]))  # [decoded, B]
        rows = torch.arange(chosen.shape[1], device=chosen.device)
        z = Diagonal(every.location[chosen, rows], every.scale[chosen, rows]).rsample()  # [decoded, B, D]
        scores = sum(self.log_likelihoods(x, z).values())
        log_likelihood = len(pi) * (pi[chosen] * scores).mean(0)  # [B]
        kl = pi @ kl_to_standard_normal(every)  # [B]
        bound = (log_likelihood - self.beta * kl).mean()

        return Loss(
            -bound - self.entropy * entropy,
            {"bound": bound, "log_likelihood": log_likelihood.mean(), "kl": kl.mean(), "entropy": entropy},
        )

    def draw_subsets(self, batch: int) -> Tensor:
        """Indices `[decoded, B]` of subsets, for every example without replacement; all of them in order."""
        count = len(self.subsets)
        if self.decoded == count:
            return torch.arange(count, device=self.device).unsqueeze(1).expand(count, batch)
        return torch.rand(batch, count, device=self.device).argsort(1)[:, : self.decoded].T

    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups()
        # The weights of the subsets serve the objective only; no sample needs them.
        groups["inference"].params.append(self.logits)
        return groups

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return consensus(list(experts.values()), self.correlation)
