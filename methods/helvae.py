"""HELVAE: experts pooled by the Hellinger distance, as one moment-matched normal."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.pooling import hellinger
from methods.parts.priors import Prior
from methods.parts.vae import Adam, MultimodalVAE


class HELVAE(MultimodalVAE):
    """Hellinger multimodal VAE; Vo and Valera 2026, METHODS.md 2.13.

    The Hoelder pool with exponent 1/2, proportional to (sum_m sqrt(q_m(z | x_m)))^2, is a mixture of the
    overlaps sqrt(q_i q_j) = B_ij N(m_ij, V_ij) of all pairs of normal experts. q(z | X) is the normal
    with its mean and variances, without prior expert, and the ELBO of the full set

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta KL(q(z | X) || N(0, I))

    is ascended, with no unimodal or subset terms. A subset of modalities is inferred by the same pool.

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
        self.prior = Prior(latent, self.family)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        q = hellinger([e.z for e in self.experts(x).values()])
        z = q.rsample()  # [B, D]

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        kl = kl_to_standard_normal(q)
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
