"""MoHELVAE: a mixture of Hellinger-pooled experts over all subsets of modalities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.pooling import hellinger, matched, overlaps
from methods.parts.posteriors import mixture_rsample, subsets
from methods.parts.priors import Prior
from methods.parts.vae import Adam, MultimodalVAE


class MoHELVAE(MultimodalVAE):
    """Mixture of Hellinger pools, the variant of HELVAE; Vo and Valera 2026, METHODS.md 2.13.

    q(z | X) = (1/(2^M - 1)) sum_S q_S(z | X_S), q_S the moment-matched normal of the Hoelder pool
    (sum_{m in S} sqrt(q_m))^2, without prior expert, mixed as MoPoE mixes its products. With z drawn from
    q (its subset S anew for every example), the ELBO

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta (1/(2^M - 1)) sum_S KL(q_S || N(0, I))

    is ascended; the averaged KL bounds that of the mixture from above.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        beta: weight of the KL, section 2.13.
    """

    citation = "Vo, Valera: Hellinger multimodal variational autoencoders, AISTATS 2026"

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 512,
        beta: float = 2.5,
        network: Network = "cnn",
        width: int = 32,
        likelihood: ImageLikelihood = "laplace",
        likelihood_scale: float = 0.75,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        lr: float = 5e-4,
        clip: float = 0.0,
    ) -> None:
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": "gaussian", "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, clip=clip), latent=latent, **backbone)
        self.beta = beta
        self.subsets = subsets(range(len(spec)))
        self.prior = Prior(latent, self.family)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        pairs = overlaps(experts)  # once for all subsets
        components = [matched(pairs.among(subset), experts[0].location.dtype) for subset in self.subsets]
        z = mixture_rsample(components)  # [B, D]

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        kl = torch.stack([kl_to_standard_normal(q) for q in components]).mean(0)
        elbo = log_likelihood - self.beta * kl

        return Loss(
            -elbo.mean(),
            {"bound": elbo.mean(), "log_likelihood": log_likelihood.mean(), "kl": kl.mean()},
        )

    def posterior_mean(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return hellinger(list(experts.values())).location

    def posterior_sample(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return hellinger(list(experts.values())).rsample()

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.rsample(n)
