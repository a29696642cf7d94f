"""The cooperative learning scheme of P1: energy, generator and inference joined by MCMC revision.

Notation as in P1 (METHODS 2.14): U energy (low = likely), G_m generators, q_m experts, z shared and w_m
private latents. Images live in [-1, 1] inside. Hats are first draws, `revised` the ends of chains.
`Ours` and `OursW` differ in their latents alone, and keep their own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec
from methods.base import Chain, Loss, Method, ParamGroup, Progress, Stage, Task, check_sampler
from methods.parts.chain_health import CHECK_EVERY, check_chains
from methods.parts.langevin import State, frozen, langevin
from methods.parts.latents import Diagonal, Expert, ExpertEncoder
from methods.parts.networks.build import build_decoder
from methods.parts.networks.energy import JointEnergy
from methods.parts.posteriors import mixture_log_prob, mixture_mean, mixture_rsample
from methods.parts.recording import Recorder


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """A smooth map onto (low, high) that is close to the identity well inside."""
    x = high - F.softplus(high - x)
    return low + F.softplus(x - low)


class Cooperative(Method):
    """Energy, generator and inference networks, their chains, their three losses and the samplers.

    Hyper-parameters (METHODS 2.14.6): `network`, `width` backbone; `latent` size of z; `energy_width`,
    `stem_width`, `stem_stride`, `spectral_norm`, `energy_penalty` r; `data_steps` K, `data_step_size`
    s_x, `data_noise` n_x; `latent_steps` T, `latent_step_size` s_z, `latent_noise` n_z, `latent_max_drift`
    bound on the drift norm of an example (0: none); `sigma` of the Gaussian generator; `generator_on_data`
    a_d, `generator_on_revised` a_s, `inference_on_data` b_d, `inference_on_revised` b_s; learning rates,
    `beta1`, `beta2`, `weight_decay` (generator, inference), `decay` per epoch, `clip` norm for energy and
    generator; `posterior`, `prior` families; `log_variance_low`, `log_variance_high`; `output`
    of the generator; `expert_mean` share of the mean of log q_m mixed into the log-sum-exp;
    `resample_negatives` draws X- from the updated generator; `temper_energy_loss` divides loss_U by the
    temperature (n_x/s_x)^2; `warm_start` share of the steps spent on an MMVAE ELBO with `warm_beta`,
    at `warm_rate` times the learning rates.
    """

    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {
        "ebm": ("joint", "cross"),
        "gen": ("joint", "cross"),
        "gen_revised": ("cross",),
    }
    chains: ClassVar[tuple[str, ...]] = ("data", "posterior")
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[energy.head.bias]": "cancels in U(x) - U(x-); `energy_penalty` trains it"
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "network": ("cnn", "resnet"),
        "posterior": ("gaussian", "laplace"),
        "prior": ("gaussian", "laplace"),
        "output": ("tanh", "linear"),
    }
    private: int = 0

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
    ) -> None:
        super().__init__(spec)
        settings = dict(locals())
        for name in ("self", "spec", "__class__"):
            settings.pop(name, None)
        self.__dict__.update(settings)
        for name, allowed in self.choices.items():
            if settings[name] not in allowed:
                raise ValueError(f"{name} '{settings[name]}' is none of {', '.join(allowed)}")
        size = self.private + latent
        self.encoders = nn.ModuleDict(
            {m.name: ExpertEncoder(m, latent, self.private, "gaussian", network, width) for m in spec}
        )
        self.generators = nn.ModuleDict({m.name: build_decoder(m, size, network, width) for m in spec})
        self.energy = JointEnergy(spec, energy_width, stem_width, stem_stride, spectral_norm)
        self.entries = sum(m.size for m in spec)

    # Networks in the units of the method -------------------------------------------------------

    @staticmethod
    def to_model(x: Batch) -> Batch:
        """Images [0, 1] -> [-1, 1]."""
        return {name: 2 * image - 1 for name, image in x.items()}

    @staticmethod
    def to_data(x: Mapping[str, Tensor]) -> Batch:
        """Images [-1, 1] -> [0, 1], not clamped."""
        return {name: (image + 1) / 2 for name, image in x.items()}

    def generate(self, latent: Mapping[str, Tensor], targets: Sequence[str] | None = None) -> State:
        """Locations G_m(w_m, z) of the generator, images in [-1, 1]; P1 Eqn 4 and 16."""
        out = {}
        for name in targets or self.spec.names:
            code = torch.cat([latent[f"w.{name}"], latent["z"]], -1) if self.private else latent["z"]
            image = self.generators[name](code).float()
            out[name] = image.tanh() if self.output == "tanh" else image
        return out

    def experts(self, x: Batch) -> dict[str, Expert]:
        """q_m(z | x_m) and q_m(w_m | x_m), their log-variances bounded smoothly."""
        return {name: self.encoders[name](image).map(self._bounded) for name, image in x.items()}

    def _bounded(self, q: Diagonal) -> Diagonal:
        log_variance = soft_clamp(2 * q.scale.log(), self.log_variance_low, self.log_variance_high)
        return Diagonal(q.location, (0.5 * log_variance).exp(), self.posterior == "laplace")

    def prior_draw(self, n: int) -> State:
        """z ~ p_0(z), w_m ~ p_0(w_m), independent."""
        shared, own = (
            self._prior(torch.zeros(n, d, device=self.device)) for d in (self.latent, self.private)
        )
        private = {f"w.{name}": own.rsample() for name in self.spec.names if self.private}
        return {"z": shared.rsample(), **private}

    def _prior(self, like: Tensor) -> Diagonal:
        return Diagonal(torch.zeros_like(like), torch.ones_like(like), self.prior == "laplace")

    @staticmethod
    def posterior_draw(experts: Mapping[str, Expert]) -> State:
        """z from one expert, chosen per example (P1 Eqn 5); w_m from the expert of its own modality."""
        fixed = {name: e.detach() for name, e in experts.items()}
        own = {f"w.{name}": e.w.rsample() for name, e in fixed.items() if e.w is not None}
        return {"z": mixture_rsample([e.z for e in fixed.values()]), **own}

    # Energies of the two chains ----------------------------------------------------------------

    def log_prior(self, latent: Mapping[str, Tensor]) -> Tensor:
        """log p_0(z) + sum_m log p_0(w_m) `[B]`."""
        return torch.stack([self._prior(block).log_prob(block) for block in latent.values()]).sum(0)

    def log_likelihood(self, x: Mapping[str, Tensor], locations: Mapping[str, Tensor]) -> Tensor:
        """sum_m log N(x_m; G_m, sigma^2 I) `[B]`, without its constant."""
        squares = [(x[name] - location).flatten(1).square().sum(1) for name, location in locations.items()]
        return -torch.stack(squares).sum(0) / (2 * self.sigma**2)

    def revise_latent(
        self, start: State, x: Batch, steps: int | None = None, record=None
    ) -> tuple[State, Tensor]:
        """T Langevin steps on p(z, w | x_S), S the modalities in `x` (P1 Eqn 8 and 17).

        Returns the revised latents and the energies `[T, B]` along the chain.
        """

        def energy(latent: State) -> Tensor:
            return -self.log_prior(latent) - self.log_likelihood(x, self.generate(latent, list(x)))

        with frozen(self.generators):
            return langevin(
                start,
                energy,
                self.latent_steps if steps is None else steps,
                self.latent_step_size,
                self.latent_noise,
                self.latent_max_drift or None,
                record,
            )

    def revise_data(
        self, start: State, held: Mapping[str, Tensor] | None = None, steps: int | None = None, record=None
    ) -> tuple[State, Tensor]:
        """K Langevin steps on the energy (P1 Eqn 3); modalities in `held` are observed and stay fixed.

        Returns the revised modalities of `start` and the energies `[K, B]` along the chain.
        """
        held = dict(held or {})
        with frozen(self.energy):
            return langevin(
                start,
                lambda x: self.energy({**x, **held}),
                self.data_steps if steps is None else steps,
                self.data_step_size,
                self.data_noise,
                record=record,
            )

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

        return {
            "generator": group(self.generators, self.lr_generator, self.weight_decay, clip),
            "inference": group(self.encoders, self.lr_inference, self.weight_decay, None),
            "energy": group(self.energy, self.lr_energy, 0.0, clip),
        }

    def forward(self, x: Batch, progress: Progress) -> Loss | Iterator[Loss]:
        x = self.to_model(x)
        if progress.stage == "warm":
            return self.warm_loss(x)
        return self.revision_loss(x, check=progress.step % CHECK_EVERY == 0)

    def log_joint_posterior(self, experts: Mapping[str, Expert], latent: Mapping[str, Tensor]) -> Tensor:
        """l = lse_m log q_m(z|x_m) - log M, plus log q_m(w_m|x_m) for private latents (P1 Eqn 12) `[B]`.

        `expert_mean` > 0 mixes in that share of the mean of log q_m, so that no expert starves.
        """
        shared = [e.z for e in experts.values()]
        log_q = mixture_log_prob(shared, latent["z"])
        if self.expert_mean:
            mean = torch.stack([q.log_prob(latent["z"]) for q in shared]).mean(0)
            log_q = (1 - self.expert_mean) * log_q + self.expert_mean * mean
        return log_q + self.log_private(experts, latent)

    @staticmethod
    def log_private(experts: Mapping[str, Expert], latent: Mapping[str, Tensor]) -> Tensor | float:
        """sum_m log q_m(w_m | x_m) `[B]`; 0 where there are no private latents."""
        logs = [e.w.log_prob(latent[f"w.{name}"]) for name, e in experts.items() if e.w is not None]
        return torch.stack(logs).sum(0) if logs else 0.0

    def revision_loss(self, x: Batch, check: bool) -> Loss | Iterator[Loss]:
        """One iteration of METHODS 2.14.2: draw, revise, then the three losses (P1 Eqn 10 to 12)."""
        n = len(next(iter(x.values())))
        latent = self.prior_draw(n)
        drawn = self.generate(latent)
        start = {name: image.detach() for name, image in drawn.items()}
        negatives, energies = self.revise_data(start)
        experts = self.experts(x)
        revised, latent_energies = self.revise_latent(self.posterior_draw(experts), x)

        reconstructed = self.generate(revised)
        on_data = -self.log_likelihood(x, reconstructed).mean()
        on_revised = -self.log_likelihood(negatives, drawn).mean()
        generator = self.generator_on_data * on_data + self.generator_on_revised * on_revised

        infer_data = -self.log_joint_posterior(experts, revised).mean()
        infer_revised = -self.log_joint_posterior(self.experts(negatives), latent).mean()
        inference = self.inference_on_data * infer_data + self.inference_on_revised * infer_revised

        moved = torch.stack([(negatives[k] - start[k]).square().mean() for k in start]).mean().sqrt()
        log_posterior = self.log_prior(revised) + self.log_likelihood(x, reconstructed)
        terms = {
            "on_data": on_data,
            "on_revised": on_revised,
            "infer_data": infer_data,
            "infer_revised": infer_revised,
            "moved": moved,
            "log_posterior_start": -latent_energies[0].mean()
            if len(latent_energies)
            else log_posterior.mean(),
            "log_posterior_end": log_posterior.mean(),
            "energy_start": energies[0].mean() if len(energies) else torch.zeros(()),
        }
        if self.resample_negatives:
            return self._resampled(x, latent, Loss.of(terms, generator=generator, inference=inference), check)
        energy, energy_terms = self.energy_loss(x, negatives)
        terms |= energy_terms
        if check:
            check_chains(terms, self.entries)
        return Loss.of(terms, generator=generator, inference=inference, energy=energy)

    def energy_loss(self, x: Batch, negatives: State) -> tuple[Tensor, dict[str, Tensor]]:
        """mean U(x) - mean U(x-) + r (mean U(x)^2 + mean U(x-)^2), P1 Eqn 10; one pass over both."""
        n = len(next(iter(x.values())))
        values = self.energy({name: torch.cat([x[name], negatives[name]]) for name in x})
        real, revised = values[:n], values[n:]
        loss = real.mean() - revised.mean()
        if self.energy_penalty:
            loss = loss + self.energy_penalty * (real.square().mean() + revised.square().mean())
        if self.temper_energy_loss:
            loss = loss * (self.data_step_size / self.data_noise) ** 2
        return loss, {"energy_data": real.mean(), "energy_revised": revised.mean()}

    def _resampled(self, x: Batch, latent: State, first: Loss, check: bool) -> Iterator[Loss]:
        """Step generator and inference, then draw X- again from the updated generator for the energy."""
        yield first
        with torch.no_grad():
            start = self.generate(latent)
        energy, terms = self.energy_loss(x, self.revise_data(start)[0])
        if check:
            check_chains(first.terms | terms, self.entries)
        yield Loss.of(terms, energy=energy)

    def warm_loss(self, x: Batch) -> Loss:
        """Negative MMVAE(+) ELBO, the optional warm start of generator and inference.

        -(1/M) sum_m E_{q_m}[ sum_n log p_n(x_n | z, w_n) + warm_beta (log p(z, w_m) - log q(z, w_m | X)) ];
        private latents of the other modalities come from the prior, as in cross generation.
        """
        experts = self.experts(x)
        elbo = []
        for name, expert in experts.items():
            own = {"z": expert.z.rsample()}
            if expert.w is not None:
                own[f"w.{name}"] = expert.w.rsample()
            log_q = mixture_log_prob([e.z for e in experts.values()], own["z"])
            kl = log_q + self.log_private({name: expert}, own) - self.log_prior(own)
            drawn = self.generate(self.prior_draw(len(own["z"])) | own)
            elbo.append(self.log_likelihood(x, drawn) - self.warm_beta * kl)
        return Loss.of(elbo=-torch.stack(elbo).mean())

    # Sampling ----------------------------------------------------------------------------------

    def encode(self, given: Batch) -> dict[str, Tensor]:
        experts = self.experts(self.to_model(given))
        own = {f"w.{name}": e.w.location for name, e in experts.items() if e.w is not None}
        return {"z": mixture_mean([e.z for e in experts.values()]), **own}

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return self.prior_draw(n)

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        complete = self.prior_draw(len(latent["z"])) | dict(latent) if self.private else latent
        return self.to_data(self.generate(complete, targets))

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        drawn = self.generate(self.prior_draw(n))
        if check_sampler(self, sampler, "joint") == "ebm":
            drawn, _ = self.revise_data(drawn, steps=steps)
        return self.to_data(drawn)

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        sampler = check_sampler(self, sampler, "cross")
        observed = self.to_model(given)
        latent = self.posterior_draw(self.experts(observed))
        if sampler == "gen_revised":
            latent, _ = self.revise_latent(latent, observed, steps)
        latent = self.prior_draw(len(latent["z"])) | latent
        missing = [name for name in self.spec.names if name not in observed]
        if sampler == "ebm" and any(name in missing for name in targets):
            # The energy needs every modality; only the missing ones move.
            drawn = self.generate(latent)
            moved, _ = self.revise_data({name: drawn[name] for name in missing}, observed, steps)
            drawn |= moved
        else:
            drawn = self.generate(latent, list(targets))
        return self.to_data({name: drawn[name] for name in targets})

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        """The data chain from the generator (energy), or the posterior chain given `x` (log-likelihood)."""
        if kind == "data":
            steps = self.data_steps if steps is None else steps
            recorder = Recorder(steps, every, self.to_data)
            with torch.no_grad():
                self.revise_data(self.generate(self.prior_draw(n)), steps=steps, record=recorder)
            return recorder.chain(kind, "energy")
        if kind != "posterior" or not x:
            raise ValueError(f"{type(self).__name__} runs a 'data' chain, or a 'posterior' chain given x")
        steps = self.latent_steps if steps is None else steps
        observed = self.to_model({name: image[:n] for name, image in x.items()})

        def fit(latent: State) -> Tensor:
            return self.log_likelihood(observed, self.generate(latent, list(observed)))

        recorder = Recorder(steps, every, lambda latent: self.decode(latent, self.spec.names), fit)
        with torch.no_grad():
            start = self.posterior_draw(self.experts(observed))
            self.revise_latent(self.prior_draw(len(start["z"])) | start, observed, steps, recorder)
        return recorder.chain(kind, "log_likelihood")

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        sampler = check_sampler(self, sampler, task)
        refinement = {"ebm": self.data_steps, "gen": 0, "gen_revised": self.latent_steps}[sampler]
        return 1 + (refinement if steps is None or sampler == "gen" else steps)

    @classmethod
    def unsupported(cls, spec: DataSpec, task: Task) -> str | None:
        if spec.texts:
            return f"the data chain of {cls.__name__} has no state for text yet"
        return super().unsupported(spec, task)
