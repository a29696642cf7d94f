"""Planted faults of encoding, sampling and chance: each must be caught by its check."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from check_faults import FAULTS, fault
from check_toys import Healthy, HealthyChain
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.base import Chain, Loss, Progress

__all__ = ["FAULTS"]

# Chance and dependence -------------------------------------------------------------------------


@fault("same_seed_same_samples")
class NumpyPicksTheExpert(Healthy):
    """One expert for the whole batch, from NumPy's generator."""

    def draw(self, x: Batch) -> Tensor:
        mean, log_scale = self.experts(x)
        i = np.random.randint(len(mean))
        return mean[i] + log_scale[i].exp() * torch.randn_like(mean[i])


@fault("same_seed_same_samples")
class SystemNoise(Healthy):
    def sample_prior(self, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
        return {"z": torch.randn(n, self.latent, generator=generator)}


@fault("loss_follows_a_permuted_batch")
class ComponentByPositionInTheLoss(Healthy):
    """Example b is reconstructed from expert b mod M."""

    def forward(self, x: Batch, progress: Progress) -> Loss:
        mean, log_scale = self.experts(x)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        chosen = torch.arange(z.shape[1]) % len(z)
        own = z[chosen, torch.arange(z.shape[1])]
        return Loss.of(error=self.reconstruction(x, own), kl=self.beta * mean.square().sum(-1).mean())


@fault("loss_follows_a_permuted_batch")
class FirstExampleCountsDouble(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        mean, _ = self.experts(x)
        return Loss.of(error=loss.parts["error"], kl=loss.parts["kl"] + 1e3 * mean[:, 0].square().sum())


@fault("cross_follows_a_permuted_batch")
class ComponentByPositionInSampling(Healthy):
    def draw(self, x: Batch) -> Tensor:
        mean, log_scale = self.experts(x)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        rows = torch.arange(z.shape[1])
        return z[rows % len(z), rows]


@fault("encode_follows_a_permuted_batch")
class EncodesByPosition(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        mean, _ = self.experts(given)
        rows = torch.arange(mean.shape[1])
        return {"z": mean[rows % len(mean), rows]}


@fault("encode_follows_a_permuted_batch")
class EncodesAgainstTheBatchMean(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        mean, _ = self.experts(given)
        return {"z": mean.mean(0) - mean.mean((0, 1))}


@fault("encode_is_deterministic")
class EncodesASample(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": self.draw(given)}


@fault("samples_vary")
class AlwaysTheSameTuple(Healthy):
    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return {"z": torch.ones(n, self.latent)}


@fault("samples_vary")
class SeedsItself(Healthy):
    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        torch.manual_seed(0)
        return super().joint_generate(n, sampler, steps)


@fault("samples_vary")
class CrossWithoutChance(Healthy):
    def draw(self, x: Batch) -> Tensor:
        return self.experts(x)[0].mean(0)


@fault("cross_depends_on_the_given")
class IgnoresTheGiven(Healthy):
    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        n = len(next(iter(given.values())))
        return self.decode(self.sample_prior(n), targets)


@fault("targets_are_not_copied")
class ReturnsTheGivenTarget(Healthy):
    """Observed modalities are held fixed, and returned as they came."""

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        out = super().cross_generate(given, targets, sampler, steps)
        return {name: given.get(name, out[name]) for name in targets}


@fault("targets_are_not_copied")
class CopiesIntoTheOtherTarget(Healthy):
    """Every image target is the given image."""

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        out = super().cross_generate(given, targets, sampler, steps)
        source = next((given[m.name] for m in self.spec.images if m.name in given), None)
        if source is None:
            return out
        return {n: source + 0.01 * torch.randn_like(source) if t.dim() == 4 else t for n, t in out.items()}


# Shapes, subsets, traces -----------------------------------------------------------------------


@fault("joint_has_the_right_shape")
class SqueezesOne(Healthy):
    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        return {k: t.squeeze(0) for k, t in super().joint_generate(n, sampler, steps).items()}


@fault("joint_has_the_right_shape")
class EightBitImages(Healthy):
    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        out = super().decode(latent, targets)
        return {n: t * 255 + 127 if t.is_floating_point() else t for n, t in out.items()}


@fault("cross_serves_every_subset")
class NeedsEveryModality(Healthy):
    """Missing modalities are looked up all the same."""

    def draw(self, x: Batch) -> Tensor:
        return super().draw({name: x[name] for name in self.spec.names})


@fault("cross_serves_every_subset")
class ReturnsEverything(Healthy):
    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        return super().cross_generate(given, self.spec.names, sampler, steps)


@fault("encode_serves_every_subset")
class EncodesUnderOtherNames(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"mu": super().encode(given)["z"]}


@fault("encode_serves_every_subset")
class ConcatenatesTheExperts(Healthy):
    """The size of the latent grows with the subset."""

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": torch.cat(list(self.experts(given)[0]), -1)}


@fault("one_example_is_enough")
class NormalisesOverTheBatch(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        return {"z": super().encode(given)["z"].squeeze()}


@fault("prior_draws_decode")
class PriorOfAnotherSize(Healthy):
    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return {"z": torch.randn(n, self.latent)[:, None]}


@fault("prior_draws_decode")
class DecodesAllTargets(Healthy):
    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        return super().decode(latent, self.spec.names)


@fault("sampling_leaves_no_trace")
class SpectralNormMoves(Healthy):
    """A running statistic is updated by sampling."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("drawn", torch.zeros(()))

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        self.drawn += n
        return super().sample_prior(n)


@fault("sampling_leaves_no_trace")
class BackwardWhileSampling(HealthyChain):
    """The chain calls backward, which fills the gradients of the parameters."""

    def revise(self, z: Tensor, steps: int | None = None, record=None) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            self.energy(z).sum().backward()
        return (z - z.grad).detach()


@fault("sampling_leaves_no_trace")
class ReturnsAGraph(Healthy):
    def encode(self, given: Batch) -> dict[str, Tensor]:
        with torch.enable_grad():
            return super().encode(given)


@fault("chains_are_recorded")
class ForgetsTheLastValue(HealthyChain):
    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        chain = super().chain(kind, x, n, steps, every)
        return Chain(chain.kind, chain.quantity, chain.at, chain.frames, chain.values[:-1])


@fault("chains_are_recorded")
class StandsStill(HealthyChain):
    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        chain = super().chain(kind, x, n, steps, every)
        return Chain(chain.kind, chain.quantity, chain.at, chain.frames[:1] * len(chain.at), chain.values)
