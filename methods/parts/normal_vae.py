"""What VAEs of normal experts with one shared normal latent have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Loss
from methods.parts.latents import Diagonal
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.posteriors import mixture_rsample
from methods.parts.priors import Prior
from methods.parts.vae import Adam, MultimodalVAE


class NormalVAE(MultimodalVAE):
    """Normal experts, pooled into one normal q(z | X_S); p(z) = N(0, I); no private latents.

    A subclass gives `forward` and `pooled`. Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5),
    and beta: weight of the KL.
    """

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

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        """q(z | X_S) `[B, latent]` from the experts of the modalities in S."""
        raise NotImplementedError

    def negative_elbo(self, x: Batch, z: Tensor, kl: Tensor) -> Loss:
        """-mean_B [sum_m lambda_m log p_m(x_m | z) - beta KL] for draws z `[B, latent]` and KLs `[B]`."""
        log_likelihood = sum(self.log_likelihoods(x, z).values())
        elbo = log_likelihood - self.beta * kl
        terms = {"bound": elbo.mean(), "log_likelihood": log_likelihood.mean(), "kl": kl.mean()}
        return Loss(-elbo.mean(), terms)

    def negative_elbo_of_mixture(self, x: Batch, components: Sequence[Diagonal]) -> Loss:
        """The same for q = (1/C) sum_c q_c: z from q, its component drawn anew for every example, and
        (1/C) sum_c KL(q_c || N(0, I)), which bounds the mixture's KL from above."""
        z = mixture_rsample(components)
        return self.negative_elbo(x, z, torch.stack([kl_to_standard_normal(q) for q in components]).mean(0))

    def posterior_mean(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return self.pooled(experts).location

    def posterior_sample(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return self.pooled(experts).rsample()

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.rsample(n)
