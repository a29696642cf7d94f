"""MVEBM, base model: MMVAE with an energy-based prior on the shared latent."""
# Over 120 lines: the energy brings settings, a stage and chains of its own.

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Chain, Loss, ParamGroup, Progress, Stage, Task
from methods.parts.energy_prior import EnergyPrior, EnergySchedule
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import check_samples, looser_bound
from methods.parts.posterior_chain import DIAGNOSTIC, latent_chain
from methods.parts.posteriors import mixture_log_prob
from methods.parts.vae import Adam, MultimodalVAE


class MVEBMBase(MultimodalVAE):
    """Multimodal VAE with an energy-based prior, base model; Yuan et al. 2024, METHODS.md 2.7.

    p_alpha(z) = exp(-U(z)) p_0(z) / Z, q(z | X) = (1/M) sum_m q_m(z | x_m). Encoders and decoders ascend

        a_{m,k} = sum_n lambda_n log p_n(x_n | z_m^k) + beta [log p_0(z_m^k) - U(z_m^k) - log q(z_m^k | X)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k}

    with U as a fixed critic (K = 1 is the paper's ELBO). U descends E_q[U(z)] - E_{p_alpha}[U(z)], its
    negatives coming from a short Langevin chain started at p_0:

        z <- z - (s^2/2) grad_z [U(z) - log p_0(z)] + s eps.

    Sampling runs the same chain and decodes; conditional sampling uses one expert and no chain.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and, all section 2.7,
        samples: K >= 1.                          beta: weight of the prior and posterior terms.
        prior_steps, prior_step_size: the chain.  energy_width: units of U.
        energy_start: share of the steps before U enters, so that chains meet a meaningful posterior.
        lr_energy, beta1_energy, decay_energy: Adam rate and beta1 of U, factor on its rate per epoch.
    """

    citation = (
        "Yuan, Cui, Li, Han: Learning multimodal latent generative models with energy-based prior, ECCV 2024"
    )
    chains: ClassVar[tuple[str, ...]] = ("prior", "posterior")
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[prior.energy.layers.4.bias]": "a constant energy cancels in the loss"
    }

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 512,
        samples: int = 1,
        beta: float = 1.0,
        family: Family = "gaussian",
        prior_steps: int = 60,
        prior_step_size: float = 0.4,
        energy_width: int = 200,
        energy_start: float = 0.05,
        lr_energy: float = 2e-5,
        beta1_energy: float = 0.5,
        decay_energy: float = 0.998,
        network: Network = "cnn",
        width: int = 32,
        likelihood: ImageLikelihood = "gaussian",
        likelihood_scale: float = 1.0,
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
        self.prior = EnergyPrior(latent, self.family, energy_width, prior_steps, prior_step_size)
        self.schedule = EnergySchedule(energy_start, lr_energy, beta1_energy, decay_energy)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        z = torch.stack([q.rsample(self.samples) for q in experts])  # [M, K, B, D]
        prior = self.prior.base if self.schedule.warming(progress) else self.prior

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        log_prior, log_posterior = prior.log_prob(z), mixture_log_prob(experts, z)
        bound = looser_bound(log_likelihood + self.beta * (log_prior - log_posterior)).mean()

        losses = {"vae": -bound}
        if not self.schedule.warming(progress):
            losses["energy"] = self.prior.contrast(z, self.prior.sample(z.shape[2]), progress)
        terms = {
            "bound": bound,
            "log_likelihood": log_likelihood.mean(),
            "kl": (log_posterior - log_prior).mean(),
        }
        return Loss.of(terms, **losses)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.schedule.stages

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        return self.schedule.gradients

    def param_groups(self) -> dict[str, ParamGroup]:
        return super().param_groups() | {"energy": self.schedule.group(self.prior.energy)}

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        return self.prior.sample(n, steps)

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        return latent_chain(self, self.prior, DIAGNOSTIC, kind, x, n, steps, every)

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        return 1 + (self.prior.chain_steps(steps) if task == "joint" else 0)
