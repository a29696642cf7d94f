"""MoPoE: a mixture of products of experts over all subsets of modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.posteriors import mixture_rsample, product, subsets
from methods.parts.priors import Prior
from methods.parts.vae import Adam, MultimodalVAE


class MoPoE(MultimodalVAE):
    """Mixture-of-products-of-experts VAE; Sutter et al. 2021, METHODS.md 2.4.

    q(z | X) = (1/(2^M - 1)) sum_S q_S(z | X_S), q_S the product of the normal experts in S, with the
    prior expert N(0, I) in the product of the full set only, as the authors' code has it. With z drawn
    from q (its subset S anew for every example), the ELBO

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta (1/(2^M - 1)) sum_S KL(q_S || N(0, I))

    is ascended; the averaged KL bounds that of the mixture from above.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        beta: weight of the KL, section 2.4.
    """

    citation = "Sutter, Daunhawer, Vogt: Generalized multimodal ELBO, ICLR 2021"

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
        self.subsets = subsets(spec.names)
        self.prior = Prior(latent, self.family)

    def product_of(self, experts: Mapping[str, Diagonal], subset: Iterable[str]) -> Diagonal:
        """q_S(z | X_S) from the experts of the modalities in `subset`."""
        members = tuple(subset)
        return product([experts[name] for name in members], prior=len(members) == len(self.spec) > 1)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = {name: e.z for name, e in self.experts(x).items()}
        components = [self.product_of(experts, subset) for subset in self.subsets]
        z = mixture_rsample(components)  # [B, D]

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        kl = torch.stack([kl_to_standard_normal(q) for q in components]).mean(0)
        elbo = log_likelihood - self.beta * kl

        return Loss(
            -elbo.mean(),
            {"bound": elbo.mean(), "log_likelihood": log_likelihood.mean(), "kl": kl.mean()},
        )

    def posterior_mean(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return self.product_of(experts, experts).location

    def posterior_sample(self, experts: Mapping[str, Diagonal]) -> Tensor:
        return self.product_of(experts, experts).rsample()

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.rsample(n)
