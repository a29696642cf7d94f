"""MOE-EBM: MMVAE+ with an energy-based prior and MCMC inference."""
# Over 120 lines: two chains make for many hyper-parameters, and for samplers and counts of their own.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Chain, Loss, ParamGroup, Progress, Stage, Task, check_sampler
from methods.parts.energy_prior import EnergyPrior, EnergySchedule
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood, Likelihood
from methods.parts.networks.build import Network
from methods.parts.objectives import check_samples, looser_bound
from methods.parts.posterior_chain import PosteriorChain, draw_posterior, latent_chain
from methods.parts.posteriors import mixture_log_prob
from methods.parts.priors import Prior, auxiliary_priors, cross_private
from methods.parts.vae import Adam, MultimodalVAE


class MoEEBM(MultimodalVAE):
    """Mixture of experts with energy prior and MCMC inference; Yuan et al. 2024, METHODS.md 2.8, 2.6.

    p(z, W) = exp(-U(z)) p_0(z) / Z prod_m p_0(w_m), posterior and r_n of MMVAE+. Encoders, decoders ascend

        a_{m,k} = lambda_m log p_m(x_m | z, w_m) + sum_{n != m} lambda_n log p_n(x_n | z, w~_n)
                  + beta [log p_0(z) - U(z) + log p_0(w_m) - log q(z | X) - log q_m(w_m | x_m)]
        L       = (1/M) sum_m log (1/K) sum_k exp a_{m,k},  w~_n ~ r_n,

    with U as a fixed critic. U descends E[U(z^T)] - E_{p_alpha}[U(z)], where z^T ends the posterior chain

        z <- z + (s^2/2) grad_z [log p_0(z) - U(z) + sum_{m in S} lambda_m log p_m(x_m | z, w_m)] + s eps

    of T steps from z^0 ~ q(z | X_S), at fixed w_m ~ q_m(w_m | x_m); in training S is all modalities. (The
    paper's Eqn 9 has the other sign and q(z | X) itself as target, which would approach nothing better.)
    Sampling runs the prior chain; `pre_ld` conditions by z^0, `post_ld` by z^T given X_S.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5); private, samples, beta of MMVAE+
    (2.6); prior_steps, prior_step_size, energy_width, energy_start, lr_energy, beta1_energy, decay_energy of
    MVEBM (2.7); and posterior_steps T, posterior_step_size s, posterior_max_drift (largest norm of an
    example's drift in a step, 0: none; METHODS trap 6) of the posterior chain (2.8).
    """

    citation = (
        "Yuan, Lipizzi, Han: Learning multimodal latent space with EBM prior and MCMC inference, "
        "arXiv 2408.10467, 2024"
    )
    latents = "shared+private"
    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {"post_ld": ("joint", "cross"), "pre_ld": ("cross",)}
    chains: ClassVar[tuple[str, ...]] = ("prior", "posterior")
    excused: ClassVar[Mapping[str, str]] = {
        "every_parameter_is_trained[prior.energy.layers.4.bias]": "cancels in U(z^T) - U(z), as many of each"
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
        posterior_steps: int = 20,
        posterior_step_size: float = 0.1,
        posterior_max_drift: float = 1.0,
        energy_width: int = 200,
        energy_start: float = 0.02,
        lr_energy: float = 2e-5,
        beta1_energy: float = 0.5,
        decay_energy: float = 0.998,
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
            raise UserError(f"private={private} is impossible for moe_ebm; give at least 1")
        observed = Likelihood(likelihood, likelihood_scale, image_weight, text_weight)
        backbone = {"family": family, "network": network, "width": width}
        super().__init__(spec, observed, Adam(lr, amsgrad, clip), latent=latent, private=private, **backbone)
        self.samples, self.beta = check_samples(samples), beta
        self.posterior = PosteriorChain(posterior_steps, posterior_step_size, posterior_max_drift)
        self.prior = EnergyPrior(latent, self.family, energy_width, prior_steps, prior_step_size)
        self.private_prior = Prior(private, self.family)
        self.auxiliaries = auxiliary_priors(spec, private, self.family)
        self.schedule = EnergySchedule(energy_start, lr_energy, beta1_energy, decay_energy)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        named = self.experts(x)
        experts = list(named.values())
        z = torch.stack([e.z.rsample(self.samples) for e in experts])  # [M, K, B, D]
        w = torch.stack([e.w.rsample(self.samples) for e in experts])  # [M, K, B, D_w]
        warming = self.schedule.warming(progress)
        prior = self.prior.base if warming else self.prior

        log_likelihood = sum(self.log_likelihoods(x, z, cross_private(w, self.auxiliaries)).values())
        kl = mixture_log_prob([e.z for e in experts], z) - prior.log_prob(z)
        own = torch.stack([e.w.log_prob(drawn) for e, drawn in zip(experts, w, strict=True)])
        kl_private = own - self.private_prior.log_prob(w)
        bound = looser_bound(log_likelihood - self.beta * (kl + kl_private)).mean()
        terms = {
            "bound": bound,
            "log_likelihood": log_likelihood.mean(),
            "kl": kl.mean(),
            "kl_private": kl_private.mean(),
        }
        if warming:
            return Loss.of(terms, vae=-bound)

        start, private = draw_posterior(self, named)
        inferred = self.posterior.run(self, self.prior, start, private, x)
        terms["moved"] = (inferred - start).norm(dim=-1).mean()
        contrast = self.prior.contrast(inferred, self.prior.sample(len(inferred)), progress)
        return Loss.of(terms, vae=-bound, energy=contrast)

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

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        refine = check_sampler(self, sampler, "cross") == "post_ld"
        z, private = draw_posterior(self, self.experts(given))
        if refine:
            z = self.posterior.run(self, self.prior, z, private, given, steps)
        return self.decode({"z": z, **{f"w.{name}": w for name, w in private.items()}}, targets)

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        return latent_chain(self, self.prior, self.posterior, kind, x, n, steps, every)

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        if check_sampler(self, sampler, task) == "pre_ld":
            return 1
        return 1 + (self.prior.chain_steps(steps) if task == "joint" else self.posterior.length(steps))
