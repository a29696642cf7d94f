"""MVTCAE: a product of experts trained by the total correlation objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.normals import kl_divergence
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.posteriors import product, stack


class MVTCAE(NormalVAE):
    """Multi-view total correlation autoencoder; Hwang et al. 2021, METHODS.md 2.5.

    q(z | X_S) ~ prod_{m in S} q_m(z | x_m), normal experts, no prior expert. With one z ~ q(z | X),

        L = ((M - alpha) / M) sum_m lambda_m log p_m(x_m | z)
            - beta [(alpha / M) sum_m KL(q(z | X) || q_m(z | x_m)) + (1 - alpha) KL(q(z | X) || N(0, I))]

    is ascended. The KLs to the experts train both of their sides.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and, section 2.5,
        alpha: the total correlation ratio, in [0, 1].
        beta: weight of the KLs.
    """

    citation = (
        "Hwang, Kim, Hong, Kim: Multi-view representation learning via total correlation objective, "
        "NeurIPS 2021"
    )

    def __init__(
        self,
        spec: DataSpec,
        *,
        alpha: float = 5 / 6,
        lr: float = 1e-3,
        **settings: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha={alpha} is impossible; give a ratio in [0, 1]")
        super().__init__(spec, lr=lr, **settings)
        self.alpha = alpha

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        q, count = product(experts), len(experts)

        log_likelihood = sum(self.log_likelihoods(x, q.rsample()).values())
        kl_experts = kl_divergence(q, stack(experts)).sum(0)
        kl = kl_to_standard_normal(q)
        divergence = self.alpha / count * kl_experts + (1 - self.alpha) * kl
        bound = (count - self.alpha) / count * log_likelihood - self.beta * divergence

        return Loss(
            -bound.mean(),
            {
                "bound": bound.mean(),
                "log_likelihood": log_likelihood.mean(),
                "kl": kl.mean(),
                "kl_experts": kl_experts.mean(),
            },
        )

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return product(list(experts.values()))
