"""The cooperative model of P1: energy, generator and inference, and the two chains that revise their draws.

Notation as in P1 (METHODS 2.14): U energy (low = likely), G_m generators, q_m experts, z shared and w_m
private latents. Images live in [-1, 1] inside; text is tokens for the likelihood and the experts, and a
continuous state in the data chain (`text_state`, METHODS 2.14.5). The chains are in `cooperative_chains`,
the losses in `cooperative_losses`, the samplers in `cooperative_sampling`; `Ours`, `OursW` and the ablations
of P1 section 5.2 differ in their latents, and in how these are bounded, alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Method, ParamGroup, Progress, Stage
from methods.parts.chain_health import CHECK_EVERY
from methods.parts.cooperative_chains import CooperativeChains
from methods.parts.cooperative_losses import elbo, log_mixture, log_own, revision_loss
from methods.parts.cooperative_sampling import CooperativeSampling
from methods.parts.cooperative_settings import check_settings, repeats_of
from methods.parts.energy_learning import contrast, to_data, to_model
from methods.parts.fitted_prior import FittedPriors
from methods.parts.langevin import State
from methods.parts.latents import Diagonal, Expert, ExpertEncoder
from methods.parts.likelihoods import categorical_log_prob
from methods.parts.networks.build import build_decoder
from methods.parts.networks.common import at_least_float32
from methods.parts.networks.energy import HEADS, JointEnergy
from methods.parts.posteriors import mixture_rsample
from methods.parts.text_state import OPTIONS, TextStates


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """A smooth map onto (low, low + softplus(high - low)), the identity well inside (low, high)."""
    x = high - F.softplus(high - x)
    return low + F.softplus(x - low)


class Cooperative(CooperativeChains, CooperativeSampling, Method):
    """Energy, generator and inference networks, the chains on them, and how they train.

    Hyper-parameters (METHODS 2.14.6): `network`, `width` backbone; `latent` size of z; `energy_width`,
    `stem_width`, `stem_stride`, `spectral_norm`, `energy_penalty` r; `data_steps` K, `data_step_size`
    s_x, `data_noise` n_x; `latent_steps` T, `latent_step_size` s_z, `latent_noise` n_z, `latent_max_drift`
    bound on the drift norm of an example (0: none); `sigma` of the Gaussian generator; `generator_on_data`
    a_d, `generator_on_revised` a_s, `inference_on_data` b_d, `inference_on_revised` b_s, `inference_on_bound`
    b_e of the ELBO of the warm start, which teaches inference alone while chains revise; learning rates,
    `beta1`, `beta2`, `weight_decay` (generator, inference), `decay` per epoch, `clip` norm for energy and
    generator; `posterior`, `prior` families; `log_variance_low`, `log_variance_high`; `output`
    of the generator; `expert_mean` share of the mean of log q_m mixed into the log-sum-exp; `own_ends` lets
    each expert learn the ends of the chains that its own draws started, and all of them, by the mean of log
    q_m, the z of revised samples;
    `updates` how often energy, generator and inference step per iteration, in this order (chains run once);
    `resample_negatives` draws X- from the updated generator; `temper_energy_loss` divides loss_U by the
    temperature (n_x/s_x)^2; `warm_start` share of the steps spent on an MMVAE ELBO with `warm_beta`,
    at `warm_rate` times the learning rates; `fit_prior` fits the prior of z to draws of the posterior
    (`FittedNormal`, or `FittedMixture` of `prior_components`); a mixture is found anew after each of
    `prior_renewals` equal parts of the revision, the last time after the last line of the log. For data with
    text: `text_weight` lambda of a caption's log-likelihood, `text_state` and `text_scale` of the chain (see
    `text_state`). `energy_head`, see `JointEnergy`.

    For ablations: `data_start` of the data chain, the generator's draw or noise, U[-1, 1]; `latent_start`
    of the latent chain, the inference model's draw or the prior's; `warm_start` = 1 is the VAE part alone.
    """

    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[energy.head.bias]": "cancels in U(x) - U(x-); `energy_penalty` trains it",
        "hyper_parameters_act[updates]": "any ratio, not one of a list; see tests/test_ours.py",
        "hyper_parameters_act[prior_renewals]": "of a mixture; see tests/test_parts_fitted_mixture.py",
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "network": ("cnn", "resnet"),
        "posterior": ("gaussian", "laplace"),
        "prior": ("gaussian", "laplace"),
        "output": ("tanh", "linear"),
        "data_start": ("generator", "noise"),
        "latent_start": ("inference", "prior"),
        "text_state": OPTIONS,
        "energy_head": HEADS,
    }
    added: ClassVar[dict[str, object]] = {
        "updates": "1:1:1",
        "inference_on_bound": 0.0,
        "own_ends": False,
        "prior_renewals": 0,
    }
    private: int = 0
    apart: ClassVar[bool] = False
    """Whether the latent chain runs block by block, each with its own bound on the drift."""

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 64,
        network: str = "resnet",
        width: int = 64,
        energy_width: int = 128,
        stem_width: int = 16,
        stem_stride: int = 1,
        spectral_norm: bool = True,
        energy_penalty: float = 0.0,
        data_steps: int = 30,
        data_step_size: float = 0.5,
        data_noise: float = 0.001,
        latent_steps: int = 30,
        latent_step_size: float = 0.05,
        latent_noise: float = 0.05,
        latent_max_drift: float = 1.0,
        sigma: float = 0.3,
        generator_on_data: float = 1.0,
        generator_on_revised: float = 50.0,
        inference_on_data: float = 1.0,
        inference_on_revised: float = 0.1,
        lr_energy: float = 1e-4,
        lr_generator: float = 3e-4,
        lr_inference: float = 1e-4,
        beta1: float = 0.0,
        beta2: float = 0.9,
        weight_decay: float = 5e-4,
        decay: float = 0.998,
        clip: float = 100.0,
        posterior: str = "gaussian",
        prior: str = "gaussian",
        log_variance_low: float = -8.0,
        log_variance_high: float = 1.0,
        output: str = "tanh",
        expert_mean: float = 0.0,
        resample_negatives: bool = False,
        temper_energy_loss: bool = False,
        warm_start: float = 0.0,
        warm_beta: float = 1.0,
        warm_rate: float = 1.0,
        data_start: str = "generator",
        latent_start: str = "inference",
        text_weight: float = 1.0,
        text_state: str = "embedding",
        text_scale: float = 1.0,
        energy_head: str = "linear",
        fit_prior: bool = False,
        prior_components: int = 1,
        updates: str = "1:1:1",
        inference_on_bound: float = 0.0,
        own_ends: bool = False,
        prior_renewals: int = 0,
    ) -> None:
        super().__init__(spec)
        settings = dict(locals())
        for name in ("self", "spec", "__class__"):
            settings.pop(name, None)
        self.__dict__.update(settings)
        for name, allowed in self.choices.items():
            if settings[name] not in allowed:
                raise ValueError(f"{name} '{settings[name]}' is none of {', '.join(allowed)}")
        check_settings(settings)
        self.repeats = repeats_of(updates)
        if text_state == "fixed" and not spec.images:
            raise ValueError("text_state 'fixed' moves pictures alone and there are none; use 'embedding'")
        # No BatchNorm in text networks: the chains would follow other functions than the losses train.
        backbone = (network, width, False)
        self.encoders = nn.ModuleDict(
            {m.name: ExpertEncoder(m, latent, self.private, "gaussian", *backbone) for m in spec}
        )
        self.generators = nn.ModuleDict(
            {m.name: build_decoder(m, self.private + latent, *backbone, private=self.private) for m in spec}
        )
        self.priors = FittedPriors(self.shared_blocks() if fit_prior else (), latent, prior_components)
        self.texts = TextStates(self.words(), text_scale, text_state)
        if warm_start < 1:
            form = (energy_width, stem_width, stem_stride, spectral_norm, self.texts.sizes, energy_head)
            self.energy = JointEnergy(spec, *form)
        else:
            self.samplers = {name: tasks for name, tasks in self.samplers.items() if name != "ebm"}
            self.chains = ("posterior",)
        self.entries = sum(m.size for m in spec)

    # Networks in the units of the method -------------------------------------------------------

    to_model = staticmethod(to_model)

    def to_data(self, state: Mapping[str, Tensor]) -> Batch:
        """States of the data chain as images in [0, 1], not clamped, and token ids."""
        return to_data(self.texts.read(state))

    def words(self) -> dict[str, Tensor]:
        """The word embeddings `[V, D]` of every text encoder."""
        return {m.name: self.encoders[m.name].towers[0].embedding.weight for m in self.spec.texts}

    def generate(self, latent: Mapping[str, Tensor], targets: Sequence[str] | None = None) -> State:
        """Locations G_m(w_m, z) of the generator, images in [-1, 1], text as logits; P1 Eqn 4 and 16."""
        out = {}
        for name in targets or self.spec.names:
            location = at_least_float32(self.generators[name](self.code(latent, name)))
            bounded = self.output == "tanh" and name not in self.texts
            out[name] = location.tanh() if bounded else location
        return out

    def code(self, latent: Mapping[str, Tensor], name: str) -> Tensor:
        """What the generator of modality `name` sees: z, or [w_m, z]."""
        return torch.cat([latent[f"w.{name}"], latent["z"]], -1) if self.private else latent["z"]

    def experts(self, x: Batch) -> dict[str, Expert]:
        """q_m(z | x_m) and, with private latents, q_m(w_m | x_m); log-variances are bounded smoothly."""
        bounded = partial(self.bounded, high=self.log_variance_high)
        return {name: self.encoders[name](image).map(bounded) for name, image in x.items()}

    def bounded(self, q: Diagonal, high: float) -> Diagonal:
        """q as one of the family `posterior`, its log-variances between `log_variance_low` and about high."""
        log_variance = soft_clamp(2 * q.scale.log(), self.log_variance_low, high)
        return Diagonal(q.location, (0.5 * log_variance).exp(), self.posterior == "laplace")

    def shared_blocks(self) -> tuple[str, ...]:
        """The latents whose priors `fit_prior` fits: z."""
        return ("z",)

    def prior_draw(self, n: int) -> State:
        """z ~ p_0(z), w_m ~ p_0(w_m), independent."""
        private = {f"w.{name}": self.private for name in self.spec.names if self.private}
        return {
            name: self.prior_sample(name, n, size) for name, size in {"z": self.latent, **private}.items()
        }

    def prior_sample(self, block: str, n: int, size: int) -> Tensor:
        """n draws `[n, size]` of the prior of a block of latents."""
        fitted = self.priors.of(block)
        if fitted is not None:
            return fitted.sample(n)
        return self.prior_of(torch.zeros(n, size, device=self.device)).rsample()

    def prior_mean(self, block: str, like: Tensor) -> Tensor:
        """Mean of the prior of a block, for every row of `like` `[n, size]`."""
        fitted = self.priors.of(block)
        return torch.zeros_like(like) if fitted is None else fitted.mean.expand_as(like)

    def prior_of(self, like: Tensor) -> Diagonal:
        """The standard prior of a block of latents shaped as `like`."""
        return Diagonal(torch.zeros_like(like), torch.ones_like(like), self.prior == "laplace")

    def posterior_draw(self, experts: Mapping[str, Expert], chosen: Tensor | None = None) -> State:
        """z from one expert, chosen per example (P1 Eqn 5); w_m from the expert of its own modality."""
        fixed = {name: e.detach() for name, e in experts.items()}
        own = {f"w.{name}": e.w.rsample() for name, e in fixed.items() if e.w is not None}
        return {"z": mixture_rsample([e.z for e in fixed.values()], chosen=chosen), **own}

    # Densities ---------------------------------------------------------------------------------

    def log_prior(self, latent: Mapping[str, Tensor]) -> Tensor:
        """log p_0(z) + sum_m log p_0(w_m) `[B]`."""
        fits = ((block, self.priors.of(name) or self.prior_of(block)) for name, block in latent.items())
        return torch.stack([prior.log_prob(block) for block, prior in fits]).sum(0)

    def log_likelihood(self, x: Mapping[str, Tensor], locations: Mapping[str, Tensor]) -> Tensor:
        """sum_m log N(x_m; G_m, sigma^2 I) + text_weight sum_l log p(word_l) `[B]`, without constants."""
        texts = {k: categorical_log_prob(x[k], logits) for k, logits in locations.items() if k in self.texts}
        return self._add_images(x, locations, {k: self.text_weight * v for k, v in texts.items()})

    def log_likelihood_of_revised(self, revised: State, drawn: State) -> Tensor:
        """The same of what the data chain made, given where it started; for text see `TextState`."""
        texts = {
            k: text.log_likelihood(revised[k], drawn[k], self.sigma, self.text_weight)
            for k, text in self.texts.items()
        }
        return self._add_images(revised, drawn, texts)

    def _add_images(
        self, x: Mapping[str, Tensor], locations: Mapping[str, Tensor], texts: Mapping[str, Tensor]
    ) -> Tensor:
        """log N(x_m; G_m, sigma^2 I) of the images, plus the log-likelihoods of `texts` `[B]`."""
        images = [name for name in locations if name not in self.texts]
        total = None
        if images:
            squares = [(x[name] - locations[name]).flatten(1).square().sum(1) for name in images]
            total = -torch.stack(squares).sum(0) / (2 * self.sigma**2)
        for log_prob in texts.values():
            total = log_prob if total is None else total + log_prob
        return total

    def log_joint_posterior(
        self,
        experts: Mapping[str, Expert],
        latent: Mapping[str, Tensor],
        unobserved: Mapping[str, Tensor] | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """log q_f(z, W | X) of a draw `[B]`, P1 Eqn 12; see `log_mixture`, with `own_ends` `log_own`."""
        if self.own_ends:
            return log_own(experts, latent, chosen, unobserved)
        return log_mixture(experts, latent, self.expert_mean, unobserved)

    # Training ----------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        warm = Stage("warm", ("generator", "inference"), self.warm_start, self.warm_rate)
        revision = Stage("revision", ("generator", "inference", "energy"), 1 - self.warm_start)
        return tuple(stage for stage in (warm, revision) if stage.share > 0)

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        own = {name: (name,) for name in ("generator", "inference", "energy")}
        return {"warm": {"elbo": ("generator", "inference")}, "revision": own}

    def param_groups(self) -> dict[str, ParamGroup]:
        betas, clip = (self.beta1, self.beta2), self.clip or None

        def group(module: nn.Module, lr: float, weight_decay: float, clip: float | None) -> ParamGroup:
            parameters = list(module.parameters())
            return ParamGroup(parameters, lr, betas, weight_decay, clip=clip, decay=self.decay)

        groups = {
            "generator": group(self.generators, self.lr_generator, self.weight_decay, clip),
            "inference": group(self.encoders, self.lr_inference, self.weight_decay, None),
        }
        if self.warm_start < 1:
            groups["energy"] = group(self.energy, self.lr_energy, 0.0, clip)
        return groups

    def forward(self, x: Batch, progress: Progress) -> Loss | Iterator[Loss]:
        x = to_model(x)
        if progress.stage == "warm":
            if self.warm_start == 1 and progress.step == progress.steps - 1:
                self.priors.settle()  # no revision follows, which would do it
            return self.warm_loss(x)
        if self.warm_start and progress.step == 0:
            # The warm start was an auto-encoding of captions: its words go on as constants.
            self.texts.settle(self.words())
        self.priors.settle(anew=self._renews(progress.step, progress.steps))
        loss = revision_loss(self, x, check=self.training and progress.step % CHECK_EVERY == 0)
        if self.prior_renewals and progress.step == progress.steps - 1:
            self.priors.settle(anew=True)
        return loss

    def _renews(self, step: int, steps: int) -> bool:
        """Whether this step of the revision begins another of `prior_renewals` equal parts."""
        part = step * self.prior_renewals // steps
        return step > 0 and part > (step - 1) * self.prior_renewals // steps

    def elbo(self, x: Batch, experts: Mapping[str, Expert]) -> tuple[Tensor, list[State]]:
        """MMVAE(+) ELBO and the latents drawn for it; images in [-1, 1]."""
        return elbo(self, x, experts)

    def warm_loss(self, x: Batch) -> Loss:
        """Negative ELBO, the warm start of generator and inference; images in [-1, 1]."""
        bound, draws = self.elbo(x, self.experts(x))
        self.priors.track(*draws)
        return Loss.of(elbo=-bound)

    def energy_loss(self, x: Batch, negatives: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast of P1 Eqn 10, divided by the temperature of the data chain where that is asked for."""
        x, negatives = self.texts.embed(x), self.texts.embed(negatives)
        loss, terms = contrast(self.energy, x, negatives, self.energy_penalty)
        if self.temper_energy_loss:
            loss = loss * (self.data_step_size / self.data_noise) ** 2
        return loss, terms
