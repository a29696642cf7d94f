"""A small healthy method for the tests of the conformance suite, without and with a Markov chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from datasets.spec import Batch, DataSpec
from methods.base import Chain, Loss, Method, ParamGroup, Progress, Stage, check_sampler
from methods.parts.langevin import frozen, langevin


class Healthy(Method):
    """A mixture-of-experts VAE of linear layers with squared error; passes every check."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"activation": ("tanh", "relu")}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 8,
        beta: float = 0.1,
        lr: float = 1e-3,
        activation: str = "tanh",
    ) -> None:
        super().__init__(spec)
        self.latent, self.beta, self.lr = latent, beta, lr
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.sizes = {m.name: m.size * max(1, m.vocabulary) for m in spec}
        self.encoders = nn.ModuleDict({n: nn.Linear(s, 2 * latent) for n, s in self.sizes.items()})
        self.decoders = nn.ModuleDict({n: nn.Linear(latent, s) for n, s in self.sizes.items()})

    def flat(self, name: str, x: Tensor) -> Tensor:
        modality = self.spec[name]
        return (x if modality.kind == "image" else F.one_hot(x, modality.vocabulary).float()).flatten(1)

    def experts(self, x: Batch) -> tuple[Tensor, Tensor]:
        names = [name for name in self.spec.names if name in x]
        both = torch.stack([self.encoders[n](self.flat(n, x[n])) for n in names]).chunk(2, -1)
        return self.activation(both[0]) * 2, both[1].clamp(-3, 3)

    def draw(self, x: Batch) -> Tensor:
        mean, log_scale = self.experts(x)
        samples = mean + log_scale.exp() * torch.randn_like(mean)
        chosen = torch.randint(len(samples), samples.shape[1:2])
        return samples.gather(0, chosen[None, :, None].expand(1, -1, self.latent))[0]

    def reconstruction(self, x: Batch, z: Tensor) -> Tensor:
        return sum((self.decoders[n](z) - self.flat(n, x[n])).square().sum(-1).mean() for n in x)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        mean, log_scale = self.experts(x)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        error = self.reconstruction(x, z)
        kl = (0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale).sum(-1).mean()
        return Loss.of({"kl_raw": kl}, error=error, kl=self.beta * kl)

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        return {"train": {"error": ("generator", "inference"), "kl": ("inference",)}}

    def param_groups(self) -> dict[str, ParamGroup]:
        parts = {"generator": self.decoders, "inference": self.encoders}
        return {name: ParamGroup(list(part.parameters()), lr=self.lr) for name, part in parts.items()}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": self.experts(given)[0].mean(0)}

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return {"z": torch.randn(n, self.latent)}

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        out = {}
        for name in targets:
            m, flat = self.spec[name], self.decoders[name](latent["z"])
            text = m.kind == "text"
            out[name] = flat.view(-1, *m.shape, m.vocabulary).argmax(-1) if text else flat.view(-1, *m.shape)
        return out

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        check_sampler(self, sampler, "joint")
        return self.decode(self.sample_prior(n), self.spec.names)

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        check_sampler(self, sampler, "cross")
        return self.decode({"z": self.draw(given)}, targets)


class HealthyChain(Healthy):
    """`Healthy` with an energy on z, a critic in its loss, a Markov sampler, two stages and a chain."""

    samplers: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("chain", "plain"), ("joint", "cross"))
    chains: ClassVar[tuple[str, ...]] = ("prior",)
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[energy.3.bias]": "a constant energy cancels in the contrast"
    }

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 8,
        chain_steps: int = 10,
        step_size: float = 0.3,
        warm: float = 0.5,
        warm_weight: float = 1.0,
    ) -> None:
        super().__init__(spec, latent=latent)
        self.chain_steps, self.step_size, self.warm, self.warm_weight = (
            chain_steps,
            step_size,
            warm,
            warm_weight,
        )
        self.energy = nn.Sequential(nn.Linear(latent, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    @property
    def stages(self) -> tuple[Stage, ...]:
        both = ("generator", "inference")
        warm = (Stage("warm", both, self.warm),) if self.warm else ()
        return (*warm, Stage("full", (*both, "energy"), 1 - self.warm))

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        base = {"error": ("generator", "inference"), "kl": ("inference",)}
        return {"warm": base, "full": {**base, "critic": ("inference",), "energy": ("energy",)}}

    def param_groups(self) -> dict[str, ParamGroup]:
        return super().param_groups() | {
            "energy": ParamGroup(list(self.energy.parameters()), lr=1e-4, clip=10.0)
        }

    def revise(self, z: Tensor, steps: int | None = None, record=None) -> Tensor:
        def energy(state: dict[str, Tensor]) -> Tensor:
            return self.energy(state["z"])[:, 0] + 0.5 * state["z"].square().sum(-1)

        steps = self.chain_steps if steps is None else steps
        with frozen(self.energy):
            return langevin({"z": z}, energy, steps, self.step_size, self.step_size, record=record)[0]["z"]

    def forward(self, x: Batch, progress: Progress) -> Loss:
        base = super().forward(x, progress)
        if progress.stage == "warm":
            error, kl = base.parts.values()
            return Loss.of(error=self.warm_weight * error, kl=kl)
        mean, _ = self.experts(x)
        fixed = {name: p.detach() for name, p in self.energy.named_parameters()}
        critic = functional_call(self.energy, fixed, mean).mean()
        negatives = self.revise(torch.randn_like(mean[0]))
        energy = self.energy(mean.detach()).mean() - self.energy(negatives).mean()
        return Loss.of(base.terms, **base.parts, critic=critic, energy=energy)

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        z = self.sample_prior(n)["z"]
        z = self.revise(z, steps) if check_sampler(self, sampler, "joint") == "chain" else z
        return self.decode({"z": z}, self.spec.names)

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        z = self.draw(given)
        z = self.revise(z, steps) if check_sampler(self, sampler, "cross") == "chain" else z
        return self.decode({"z": z}, targets)

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        at, frames, values = [], [], []

        def record(step: int, state: dict[str, Tensor], energy: Tensor, drift: dict[str, Tensor]) -> None:
            values.append(energy)
            if step % every == 0:
                at.append(step)
                frames.append({k: t.detach() for k, t in self.decode(state, self.spec.names).items()})

        self.revise(self.sample_prior(n)["z"], steps, record)
        return Chain(kind, "energy", at, frames, torch.stack(values))

    def nfe(self, sampler: str | None, task: str, steps: int | None = None) -> int:
        if check_sampler(self, sampler, task) == "plain":
            return 1
        return 1 + (self.chain_steps if steps is None else steps)
