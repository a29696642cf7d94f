"""MMVAE: a mixture-of-experts posterior trained by an importance bound."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Loss, ParamGroup, Progress
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import check_estimator, check_samples, importance_surrogate, looser_bound
from methods.parts.posteriors import mixture_log_prob
from methods.parts.priors import Prior
from methods.parts.vae import Adam, MultimodalVAE


class MMVAE(MultimodalVAE):
    """Mixture-of-experts multimodal VAE; Shi et al. 2019, METHODS.md 2.2.

    q(z | X) = (1/M) sum_m q_m(z | x_m). For every expert m draw z_m^1..z_m^K ~ q_m(z | x_m), then

        a_{m,k} = sum_n lambda_n log p_n(x_n | z_m^k) + beta [log p(z_m^k) - log q(z_m^k | X)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k}

    is ascended (the "looser" bound of the paper's runs; the published one has beta = 1).

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        samples: K >= 1, section 2.2.
        estimator: `iwae`, or `dreg` as published, biased for mixtures at K > 1, section 2.2.
        beta: weight of the prior and posterior terms, section 1.1.
        learn_prior: train the scale of p(z), section 2.2.
    """

    citation = (
        "Shi, Siddharth, Paige, Torr: Variational mixture-of-experts autoencoders for multi-modal deep "
        "generative models, NeurIPS 2019"
    )

    choices = {**MultimodalVAE.choices, "estimator": ("iwae", "dreg")}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 512,
        samples: int = 10,
        estimator: Literal["iwae", "dreg"] = "iwae",
        beta: float = 1.0,
        family: Family = "laplace",
        learn_prior: bool = True,
        network: Network = "cnn",
        width: int = 32,
        likelihood: ImageLikelihood = "laplace",
        likelihood_scale: float = 0.75,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        lr: float = 1e-3,
        amsgrad: bool = False,
        clip: float = 0.0,
    ) -> None:
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": family, "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, amsgrad, clip), latent=latent, **backbone)
        self.samples, self.beta = check_samples(samples), beta
        self.estimator = check_estimator(estimator, ("iwae", "dreg"))
        self.prior = Prior(latent, self.family, learn=learn_prior)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        z = torch.stack([q.rsample(self.samples) for q in experts])  # [M, K, B, D]
        densities = [q.detach() for q in experts] if self.estimator == "dreg" else experts

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        log_prior, log_posterior = self.prior.log_prob(z), mixture_log_prob(densities, z)
        a = log_likelihood + self.beta * (log_prior - log_posterior)

        return Loss(
            -importance_surrogate(a, [z], self.estimator).mean(),
            {
                "bound": looser_bound(a.detach()).mean(),
                "log_likelihood": log_likelihood.mean(),
                "kl": (log_posterior - log_prior).mean(),
            },
        )

    def param_groups(self) -> dict[str, ParamGroup]:
        learned = list(self.prior.parameters())
        return super().param_groups() | ({"prior": self.adam.group(learned)} if learned else {})

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.rsample(n)
