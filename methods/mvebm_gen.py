"""MVEBM, generalised model: MMVAE+ with an energy-based prior on the shared latent."""
# Over 120 lines: the energy brings settings, a stage and chains of its own.

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Chain, Loss, ParamGroup, Progress, Stage, Task
from methods.parts.energy_prior import EnergyPrior, EnergySchedule
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import check_samples, looser_bound
from methods.parts.posterior_chain import DIAGNOSTIC, latent_chain
from methods.parts.posteriors import mixture_log_prob
from methods.parts.priors import Prior, auxiliary_priors, cross_private
from methods.parts.vae import Adam, MultimodalVAE


class MVEBMGen(MultimodalVAE):
    """Multimodal VAE with an energy-based prior, generalised; Yuan et al. 2024, METHODS.md 2.7, 2.6.

    p(z, W) = exp(-U(z)) p_0(z) / Z prod_m p_0(w_m), posterior and r_n of MMVAE+. Encoders, decoders ascend

        a_{m,k} = lambda_m log p_m(x_m | z, w_m) + sum_{n != m} lambda_n log p_n(x_n | z, w~_n)
                  + beta [log p_0(z) - U(z) + log p_0(w_m) - log q(z | X) - log q_m(w_m | x_m)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k},  w~_n ~ r_n,

    with U as a fixed critic (K = 1 is the paper's ELBO). U descends E_q[U(z)] - E_{p_alpha}[U(z)] with
    negatives from a short Langevin chain on U(z) - log p_0(z) started at p_0. Sampling runs that chain and
    draws w_m ~ p_0; conditional sampling uses one expert and no chain.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5); private, samples, beta of MMVAE+
    (2.6); and prior_steps, prior_step_size of the chain, energy_width (units of U), energy_start (share of
    the steps before U enters), lr_energy, beta1_energy, decay_energy (Adam's for U, 2.7).
    """

    citation = (
        "Yuan, Cui, Li, Han: Learning multimodal latent generative models with energy-based prior, ECCV 2024"
    )
    latents = "shared+private"
    chains: ClassVar[tuple[str, ...]] = ("prior", "posterior")
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[prior.energy.layers.4.bias]": "a constant energy cancels in the loss"
    }

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 32,
        private: int = 32,
        samples: int = 1,
        beta: float = 2.5,
        family: Family = "laplace",
        prior_steps: int = 60,
        prior_step_size: float = 0.4,
        energy_width: int = 200,
        energy_start: float = 0.02,
        lr_energy: float = 2e-5,
        beta1_energy: float = 0.5,
        decay_energy: float = 0.998,
        network: Network = "resnet",
        width: int = 64,
        likelihood: ImageLikelihood = "gaussian",
        likelihood_scale: float = 1.0,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        lr: float = 1e-3,
        amsgrad: bool = True,
        clip: float = 0.0,
    ) -> None:
        if private < 1:
            raise UserError(
                f"private={private} is impossible for mvebm_gen; give at least 1, or use mvebm_base"
            )
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": family, "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, amsgrad, clip), latent=latent, private=private, **backbone)
        self.samples, self.beta = check_samples(samples), beta
        self.prior = EnergyPrior(latent, self.family, energy_width, prior_steps, prior_step_size)
        self.private_prior = Prior(private, self.family)
        self.auxiliaries = auxiliary_priors(spec, private, self.family)
        self.schedule = EnergySchedule(energy_start, lr_energy, beta1_energy, decay_energy)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = list(self.experts(x).values())
        z = torch.stack([e.z.rsample(self.samples) for e in experts])  # [M, K, B, D]
        w = torch.stack([e.w.rsample(self.samples) for e in experts])  # [M, K, B, D_w]
        prior = self.prior.base if self.schedule.warming(progress) else self.prior

        log_likelihood = sum(self.log_likelihoods(x, z, cross_private(w, self.auxiliaries)).values())
        kl = mixture_log_prob([e.z for e in experts], z) - prior.log_prob(z)
        own = torch.stack([e.w.log_prob(drawn) for e, drawn in zip(experts, w, strict=True)])
        kl_private = own - self.private_prior.log_prob(w)
        bound = looser_bound(log_likelihood - self.beta * (kl + kl_private)).mean()

        losses = {"vae": -bound}
        if not self.schedule.warming(progress):
            losses["energy"] = self.prior.contrast(z, self.prior.sample(z.shape[2]), progress)
        terms = {
            "bound": bound,
            "log_likelihood": log_likelihood.mean(),
            "kl": kl.mean(),
            "kl_private": kl_private.mean(),
        }
        return Loss.of(terms, **losses)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.schedule.stages

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        return self.schedule.gradients

    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups() | {"energy": self.schedule.group(self.prior.energy)}
        groups["inference"].params.extend(self.auxiliaries.parameters())
        return groups

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.sample(n, steps)

    def draw_private(self, n: int) -> Tensor:
        return self.private_prior.rsample(n)

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        return latent_chain(self, self.prior, DIAGNOSTIC, kind, x, n, steps, every)

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        return 1 + (self.prior.chain_steps(steps) if task == "joint" else 0)
