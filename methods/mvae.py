"""MVAE: a product of experts, trained by a sum of ELBOs over subsets of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.posteriors import product, stack, subsets


class MVAE(NormalVAE):
    """Product-of-experts VAE; Wu & Goodman 2018, METHODS.md 2.1.

    q(z | X_S) ~ p(z) prod_{m in S} q_m(z | x_m) with normal experts and the prior expert N(0, I), for every
    subset S. With

        ELBO(X_S) = E_{q(z | X_S)} sum_{m in S} lambda_m log p_m(x_m | z) - beta_t KL(q(z | X_S) || N(0, I))

    the sum ELBO(X) + sum_m ELBO(x_m) + sum_j ELBO(X_{S_j}) is ascended, the S_j being random subsets of
    2 to M - 1 modalities, drawn anew and without repetition at every step.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and, section 2.1,
        beta: weight of the KL.
        anneal: share of the training steps in which beta_t rises from 0 to beta; 0 keeps it constant.
        random_subsets: number of the S_j; 0 in the published PolyMNIST runs.
    """

    citation = (
        "Wu, Goodman: Multimodal generative models for scalable weakly-supervised learning, NeurIPS 2018"
    )

    def __init__(
        self,
        spec: DataSpec,
        *,
        anneal: float = 0.0,
        random_subsets: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(spec, **settings)
        every = subsets(spec.names)
        # With one modality the full set is the singleton: one ELBO, not two.
        self.always = list(dict.fromkeys([every[-1], *every[: len(spec)]]))
        self.between = [s for s in every if 1 < len(s) < len(spec)]
        if not 0 <= random_subsets <= len(self.between):
            raise UserError(
                f"random_subsets={random_subsets} is impossible: {len(spec)} modalities have "
                f"{len(self.between)} subsets between one and all; give 0 to {len(self.between)}"
            )
        if not 0 <= anneal <= 1:
            raise UserError(f"anneal={anneal} is impossible; give a share of the training in [0, 1]")
        self.anneal, self.random_subsets = anneal, random_subsets

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = {name: e.z for name, e in self.experts(x).items()}
        drawn = torch.randperm(len(self.between))[: self.random_subsets].tolist()
        chosen = [*self.always, *(self.between[i] for i in drawn)]
        q = stack([product([experts[name] for name in s], prior=True) for s in chosen])  # [S, B, D]
        z = q.rsample()

        log_likelihood = torch.zeros_like(z[..., 0])
        for m in self.spec:
            rows = torch.tensor([i for i, s in enumerate(chosen) if m.name in s], device=z.device)
            seen = self.likelihood(m, x[m.name], self.output(m.name, z[rows], None))
            log_likelihood = log_likelihood.index_add(0, rows, seen)
        kl = kl_to_standard_normal(q)
        elbo = log_likelihood - self.beta_now(progress) * kl  # [S, B], the full set first

        return Loss(
            -elbo.sum(0).mean(),
            {
                "bound": elbo[0].mean(),
                "bound_subsets": elbo[1:].sum(0).mean(),
                "log_likelihood": log_likelihood[0].mean(),
                "kl": kl[0].mean(),
            },
        )

    def beta_now(self, progress: Progress) -> float:
        """beta_t: rises linearly to beta during the first `anneal` of the steps."""
        return self.beta * (min(1.0, progress.fraction / self.anneal) if self.anneal else 1.0)

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return product(list(experts.values()), prior=True)
