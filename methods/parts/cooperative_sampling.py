"""Encoding, sampling and chains of `Cooperative` (METHODS 2.14.3): what the harness asks after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.base import Chain, Task, check_sampler
from methods.parts.energy_learning import to_model
from methods.parts.langevin import State
from methods.parts.posteriors import mixture_mean
from methods.parts.recording import Recorder


class CooperativeSampling:
    """Samplers: `gen`, the generator; `ebm`, K energy steps after it; `gen_revised`, T latent steps before.

    For a class that also has the members of `Cooperative`, which holds networks and chains.
    """

    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {
        "ebm": ("joint", "cross"),
        "gen": ("joint", "cross"),
        "gen_revised": ("cross",),
    }
    chains: ClassVar[tuple[str, ...]] = ("data", "posterior")

    @property
    def fitted(self) -> list[tuple[Tensor, int]]:
        return self.priors.numbers

    def encode(self, given: Batch) -> dict[str, Tensor]:
        experts = self.experts(to_model(given))
        own = {f"w.{name}": e.w.location for name, e in experts.items() if e.w is not None}
        return {"z": mixture_mean([e.z for e in experts.values()]), **own}

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return self.prior_draw(n)

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        complete = self.prior_draw(len(latent["z"])) | dict(latent) if self.private else latent
        return self.to_data(self.texts.state(self.generate(complete, targets)))

    def infer(self, observed: Batch, revise: bool = False, steps: int | None = None) -> State:
        """A draw of every latent given x_S in [-1, 1], after T steps on p(z, w | x_S) if `revise`.

        What the observations say nothing about, the private latents of missing modalities, comes from the
        prior.
        """
        experts = self.experts(observed)
        if revise:
            latent, _ = self.revise_latent(self.first_latents(experts), observed, steps)
        else:
            latent = self.posterior_draw(experts)
        return self.prior_draw(len(next(iter(observed.values())))) | latent

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        latent = self.prior_draw(n)
        if check_sampler(self, sampler, "joint") == "gen":
            return self.to_data(self.texts.state(self.generate(latent)))
        return self.to_data(self.revise_data(self.first_images(latent), steps=steps)[0])

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        sampler = check_sampler(self, sampler, "cross")
        observed = to_model(given)
        latent = self.infer(observed, sampler == "gen_revised", steps)
        missing = [name for name in self.spec.names if name not in observed]
        if sampler == "ebm" and any(name in missing for name in targets):
            # The energy needs every modality; only the missing ones move.
            drawn = self.texts.state(self.generate(latent))
            start = self.first_images(latent) if self.data_start == "noise" else drawn
            drawn |= self.revise_data({name: start[name] for name in missing}, observed, steps)[0]
        else:
            drawn = self.texts.state(self.generate(latent, list(targets)))
        return self.to_data({name: drawn[name] for name in targets})

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        """The data chain from where it starts (energy), or the posterior chain given `x` (log-likelihood)."""
        if kind not in self.chains or (kind == "posterior" and not x):
            raise ValueError(
                f"{type(self).__name__} runs a chain of {' or '.join(self.chains)}, posterior given x"
            )
        if kind == "data":
            steps = self.data_steps if steps is None else steps
            size, noise = self.data_step_size, self.data_noise
            recorder = Recorder(steps, every, self.to_data, step_size=size, noise=noise)
            with torch.no_grad():
                self.revise_data(self.first_images(self.prior_draw(n)), steps=steps, record=recorder)
            return recorder.chain(kind, "energy")
        steps = self.latent_steps if steps is None else steps
        observed = to_model({name: block[:n] for name, block in x.items()})

        def fit(latent: State) -> Tensor:
            return self.log_likelihood(observed, self.generate(latent, list(observed)))

        recorder = Recorder(
            steps,
            every,
            lambda latent: self.decode(latent, self.spec.names),
            fit,
            step_size=self.latent_step_size,
            noise=self.latent_noise,
        )
        with torch.no_grad():
            start = self.first_latents(self.experts(observed))
            rows = len(next(iter(observed.values())))
            self.revise_latent(self.prior_draw(rows) | start, observed, steps, recorder)
        return recorder.chain(kind, "log_likelihood")

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        sampler = check_sampler(self, sampler, task)
        own = {"ebm": self.data_steps, "gen": 0, "gen_revised": self.latent_steps}[sampler]
        refinement = own if steps is None or sampler == "gen" else steps
        decoded = not (sampler == "ebm" and task == "joint" and self.data_start == "noise")
        return max(1, decoded + refinement)
