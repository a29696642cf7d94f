"""CMVAE: MMVAE+ whose prior on the shared latent is a learned mixture of clusters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, ParamGroup, Progress
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.mixture_prior import MixturePrior
from methods.parts.networks.build import Network
from methods.parts.objectives import check_estimator, check_samples, importance_surrogate, looser_bound
from methods.parts.posteriors import mixture_log_prob
from methods.parts.priors import Prior, auxiliary_priors, cross_private
from methods.parts.vae import Adam, MultimodalVAE


class CMVAE(MultimodalVAE):
    """Clustering multimodal VAE; Palumbo et al. 2024, METHODS.md 2.9.

    c ~ Cat(pi), z | c ~ p(z | c) around a learned centre mu_c, W and posteriors as in MMVAE+. For every
    expert m and k = 1..K, with z ~ q_m(z | x_m), w_m ~ q_m(w_m | x_m), w~_n ~ r_n for n != m, ascend

        a_{m,k} = lambda_m log p_m(x_m | z, w_m) + sum_{n != m} lambda_n log p_n(x_n | z, w~_n)
                  + beta [log sum_c pi_c p(z | c) + log p(w_m) - log q(z | X) - log q_m(w_m | x_m)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k}.

    Samples use all clusters; `assign`, for clustering scores alone, prunes them on held-out data.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        private, samples, estimator, beta: as in MMVAE+, section 2.6.
        clusters: number of clusters; spread: centres start uniform in (-spread, spread); section 2.9.
    """

    citation = (
        "Palumbo, Manduchi, Laguna, Chopard, Vogt: Deep generative clustering with multimodal diffusion "
        "variational autoencoders, ICLR 2024"
    )
    latents = "shared+private"
    choices = {**MultimodalVAE.choices, "estimator": ("iwae", "dreg", "dreg_compat")}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 32,
        private: int = 32,
        clusters: int = 40,
        spread: float = 1.0,
        samples: int = 1,
        estimator: Literal["iwae", "dreg", "dreg_compat"] = "iwae",
        beta: float = 2.5,
        family: Family = "laplace",
        network: Network = "resnet",
        width: int = 64,
        likelihood: ImageLikelihood = "laplace",
        likelihood_scale: float = 0.75,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        lr: float = 1e-3,
        amsgrad: bool = True,
        clip: float = 0.0,
    ) -> None:
        if private < 1:
            raise UserError(f"private={private} is impossible for CMVAE; give at least 1")
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": family, "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, amsgrad, clip), latent=latent, private=private, **backbone)
        self.samples, self.beta = check_samples(samples), beta
        self.estimator = check_estimator(estimator, ("iwae", "dreg", "dreg_compat"))
        self.prior = MixturePrior(latent, self.family, clusters, spread)
        self.private_prior = Prior(private, self.family)
        self.auxiliaries = auxiliary_priors(spec, private, self.family)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = list(self.experts(x).values())
        z = torch.stack([e.z.rsample(self.samples) for e in experts])  # [M, K, B, D]
        w = torch.stack([e.w.rsample(self.samples) for e in experts])  # [M, K, B, D_w]
        densities = [e.detach() for e in experts] if self.estimator == "dreg" else experts

        filled = cross_private(w, self.auxiliaries)
        log_likelihood = sum(self.log_likelihoods(x, z, filled).values())
        own = torch.stack([e.w.log_prob(drawn) for e, drawn in zip(densities, w, strict=True)])
        kl = mixture_log_prob([e.z for e in densities], z) - self.prior.log_prob(z)
        kl_private = own - self.private_prior.log_prob(w)
        a = log_likelihood - self.beta * (kl + kl_private)

        return Loss(
            -importance_surrogate(a, [z, w], self.estimator).mean(),
            {
                "bound": looser_bound(a.detach()).mean(),
                "log_likelihood": log_likelihood.mean(),
                "kl": kl.mean(),
                "kl_private": kl_private.mean(),
            },
        )

    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups() | {"prior": self.adam.group(self.prior.parameters())}
        groups["inference"].params.extend(self.auxiliaries.parameters())
        return groups

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.sample(n)

    def draw_private(self, n: int) -> Tensor:
        return self.private_prior.rsample(n)

    def unimodal_means(self, x: Batch) -> Tensor:
        """The mean of every given modality's own expert, `[M, B, latent]`."""
        return torch.stack([e.z.location for e in self.experts(x).values()])

    def assign(self, x: Batch, held_out: Batch) -> Tensor:
        kept = self.prior.kept(self.unimodal_means(held_out).flatten(0, 1), self.beta)
        return self.prior.vote(self.unimodal_means(x), kept)
