"""MMVAE+: shared and modality-specific latents, with auxiliary priors for cross-reconstruction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, ParamGroup, Progress
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import check_estimator, check_samples, importance_surrogate, looser_bound
from methods.parts.posteriors import mixture_log_prob
from methods.parts.priors import Prior, auxiliary_priors, cross_private
from methods.parts.vae import Adam, MultimodalVAE


class MMVAEPlus(MultimodalVAE):
    """MMVAE with private latents; Palumbo et al. 2023, METHODS.md 2.6.

    q(z, W | X) = [(1/M) sum_m q_m(z | x_m)] prod_m q_m(w_m | x_m). For every expert m and k = 1..K draw
    z ~ q_m(z | x_m), w_m ~ q_m(w_m | x_m), and w~_n ~ r_n for n != m, then ascend

        a_{m,k} = lambda_m log p_m(x_m | z, w_m) + sum_{n != m} lambda_n log p_n(x_n | z, w~_n)
                  + beta [log p(z) + log p(w_m) - log q(z | X) - log q_m(w_m | x_m)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k}.

    r_n has location 0 and a learned scale and carries no KL. At test time the missing w_n come from the
    prior p(w_n), not from r_n, independently per modality; self-reconstruction infers w_m.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        private: size of each w_m, section 2.6.
        samples: K >= 1, section 2.6.
        estimator: `iwae`; `dreg` with constant posterior densities, biased for mixtures at K > 1; or
            `dreg_compat`, the released code, which keeps the densities and so is no DReG; section 2.6.
        beta: weight of the prior and posterior terms, section 2.6.
    """

    citation = (
        "Palumbo, Daunhawer, Vogt: MMVAE+: enhancing the generative quality of multimodal VAEs without "
        "compromises, ICLR 2023"
    )
    latents = "shared+private"
    choices = {**MultimodalVAE.choices, "estimator": ("iwae", "dreg", "dreg_compat")}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 32,
        private: int = 32,
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
            raise UserError(f"private={private} is impossible for MMVAE+; give at least 1, or use mmvae")
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": family, "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, amsgrad, clip), latent=latent, private=private, **backbone)
        self.samples, self.beta = check_samples(samples), beta
        self.estimator = check_estimator(estimator, ("iwae", "dreg", "dreg_compat"))
        self.prior, self.private_prior = Prior(latent, self.family), Prior(private, self.family)
        self.auxiliaries = auxiliary_priors(spec, private, self.family)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = list(self.experts(x).values())
        z = torch.stack([e.z.rsample(self.samples) for e in experts])  # [M, K, B, D]
        w = torch.stack([e.w.rsample(self.samples) for e in experts])  # [M, K, B, D_w]
        densities = [e.detach() for e in experts] if self.estimator == "dreg" else experts

        filled = cross_private(w, self.auxiliaries)
        log_likelihood = sum(self.log_likelihoods(x, z, filled).values())
        log_prior, log_posterior = self.prior.log_prob(z), mixture_log_prob([e.z for e in densities], z)
        log_prior_w = self.private_prior.log_prob(w)
        log_posterior_w = torch.stack([e.w.log_prob(own) for e, own in zip(densities, w, strict=True)])
        a = log_likelihood + self.beta * (log_prior + log_prior_w - log_posterior - log_posterior_w)

        return Loss(
            -importance_surrogate(a, [z, w], self.estimator).mean(),
            {
                "bound": looser_bound(a.detach()).mean(),
                "log_likelihood": log_likelihood.mean(),
                "kl": (log_posterior - log_prior).mean(),
                "kl_private": (log_posterior_w - log_prior_w).mean(),
            },
        )

    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups()
        # The r_n serve the bound only; no sample needs them, so they count with the inference networks.
        groups["inference"].params.extend(self.auxiliaries.parameters())
        return groups

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.rsample(n)

    def draw_private(self, n: int) -> Tensor:
        return self.private_prior.rsample(n)
