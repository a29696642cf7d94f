"""Planted faults of declarations, hyper-parameters, state and loss: each must be caught by its check."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from check_toys import Healthy, HealthyChain
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Method, ParamGroup, Progress, Stage

FAULTS: dict[str, list[type[Method]]] = {}


def fault(check: str) -> Callable[[type[Method]], type[Method]]:
    """This class must fail `check`."""

    def register(kind: type[Method]) -> type[Method]:
        FAULTS.setdefault(check, []).append(kind)
        return kind

    return register


# Declarations ----------------------------------------------------------------------------------


@fault("unknown_keyword_is_refused")
@fault("hyper_parameters_act")
class SwallowsKeywords(Healthy):
    def __init__(self, spec: DataSpec, *, beta: float = 0.1, **settings: Any) -> None:
        super().__init__(spec, beta=beta)


@fault("hyper_parameters_are_visible")
class KeywordsWithoutNames(Method):
    def __init__(self, spec: DataSpec, **settings: float) -> None:
        super().__init__(spec)
        self.beta = settings.get("beta", 1.0)


@fault("hyper_parameters_are_visible")
class PositionsWithoutNames(Healthy):
    def __init__(self, spec: DataSpec, *settings: float) -> None:
        super().__init__(spec, beta=settings[0] if settings else 0.1)


@fault("hyper_parameters_are_visible")
class NeedsAValue(Healthy):
    small = {"beta": 0.1}

    def __init__(self, spec: DataSpec, *, beta: float) -> None:
        super().__init__(spec, beta=beta)


@fault("unsupported_gives_reasons")
class RefusesWithoutReason(Healthy):
    @classmethod
    def unsupported(cls, spec: DataSpec, task: str) -> Any:
        return False if task == "interpolate" else None


@fault("groups_are_named")
class OddGroupName(Healthy):
    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups()
        return {"generator": groups["generator"], "encoder": groups["inference"]}


@fault("groups_are_named")
class EmptyGroup(Healthy):
    def param_groups(self) -> dict[str, ParamGroup]:
        return super().param_groups() | {"prior": ParamGroup([])}


@fault("groups_cover_the_parameters")
class ForgottenParameters(Healthy):
    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups()
        groups["inference"].params.pop()
        return groups


@fault("groups_cover_the_parameters")
class ParametersInTwoGroups(Healthy):
    def param_groups(self) -> dict[str, ParamGroup]:
        groups = super().param_groups()
        return groups | {"prior": ParamGroup(groups["generator"].params[:1])}


@fault("stages_are_consistent")
class SharesBeyondOne(HealthyChain):
    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(s.name, s.groups, 0.7) for s in super().stages)


@fault("stages_are_consistent")
class GroupInNoStage(HealthyChain):
    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("full", ("generator", "inference")),)


@fault("samplers_are_declared")
class AnySamplerWill(Healthy):
    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        return super().joint_generate(n)


@fault("nfe_counts_steps")
class ChainForFree(HealthyChain):
    def nfe(self, sampler: str | None, task: str, steps: int | None = None) -> int:
        return 1


@fault("nfe_counts_steps")
class FractionOfAnEvaluation(Healthy):
    def nfe(self, sampler: str | None, task: str, steps: int | None = None) -> int:
        return 0.5  # type: ignore[return-value]


# Hyper-parameters ------------------------------------------------------------------------------


@fault("hyper_parameters_act")
class DeadBeta(Healthy):
    """beta is stored, logged, and multiplies nothing."""

    def forward(self, x: Batch, progress: Progress) -> Loss:
        kept, self.beta = self.beta, 0.1
        loss = super().forward(x, progress)
        self.beta = kept
        loss.terms["beta"] = torch.tensor(kept)
        return loss


@fault("hyper_parameters_act")
class DeadBesideASwitch(HealthyChain):
    """warm_weight is never read, whichever stage is on."""

    def __init__(self, spec: DataSpec, *, warm: float = 0.0, warm_weight: float = 1.0) -> None:
        super().__init__(spec, warm=warm)
        self.register_buffer("stored", torch.tensor(warm_weight))


@fault("hyper_parameters_act")
class StringWithoutChoices(Healthy):
    choices = {}


# State -----------------------------------------------------------------------------------------


@fault("tensors_are_registered")
@fault("weights_hold_everything")
class ParametersInAList(Healthy):
    """The decoders sit in a Python list: never trained, never saved."""

    def __init__(self, spec: DataSpec, *, latent: int = 8) -> None:
        super().__init__(spec, latent=latent)
        self.hidden = [self.decoders[name] for name in spec.names]
        del self._modules["decoders"]

    def __getattr__(self, name: str) -> Any:
        if name == "decoders" and "hidden" in vars(self):
            return dict(zip(self.spec.names, self.hidden, strict=True))
        return super().__getattr__(name)

    def param_groups(self) -> dict[str, ParamGroup]:
        return {"inference": ParamGroup(list(self.encoders.parameters()))}

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        return {"train": {"error": ("inference",), "kl": ("inference",)}}


@fault("tensors_are_registered")
class ConstantInAnAttribute(Healthy):
    """A plain tensor stays on the CPU when the method moves to another device."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.scale = torch.ones(3)


@fault("every_parameter_is_trained")
class UnusedLayer(Healthy):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.decoders["left over"] = nn.Linear(2, 2)


@fault("every_parameter_is_trained")
class DetachedEncoder(Healthy):
    def reconstruction(self, x: Batch, z: Tensor) -> Tensor:
        first = self.spec.names[0]
        without = {name: t for name, t in x.items() if name != first}
        return super().reconstruction(without, z) + 0 * self.decoders[first](z).sum()


@fault("weights_hold_everything")
class CountsInAnAttribute(Healthy):
    """A schedule that counts its own calls is lost with the checkpoint."""

    calls = 0

    def forward(self, x: Batch, progress: Progress) -> Loss:
        self.calls += 1
        loss = super().forward(x, progress)
        return Loss.of(error=loss.parts["error"], kl=loss.parts["kl"] * min(1.0, self.calls / 100))


@fault("copies_are_independent")
class CopiesShareTensors(Healthy):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesShareTensors:
        twin = type(self)(self.spec)
        twin.encoders, twin.decoders = self.encoders, self.decoders
        return twin


@fault("copies_are_independent")
class CopiesStartAnew(Healthy):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesStartAnew:
        return type(self)(self.spec)


# Loss ------------------------------------------------------------------------------------------


@fault("loss_is_finite")
class LogOfZero(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        return Loss.of({"dark": x[self.spec.names[0]].new_zeros(()).log()}, **loss.parts)


@fault("loss_is_finite")
class LossPerExample(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        return Loss(super().forward(x, progress).total.expand(3))


@fault("loss_is_finite")
class DividesByTheStep(Healthy):
    """Fails at the first step only, where the warm-up is zero."""

    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        return Loss.of(error=loss.parts["error"], kl=loss.parts["kl"] / torch.tensor(progress.step))


@fault("parts_sum_to_total")
class WeightedOnlyInTheTotal(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        return Loss(loss.total + loss.parts["kl"], loss.terms, loss.parts)


@fault("terms_are_detached")
class TermsKeepTheirGraph(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        loss.terms["error"] = loss.parts["error"]
        return loss


@fault("gradients_match_the_table")
class CriticIsTrained(HealthyChain):
    """The energy enters the bound with its own parameters attached."""

    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        if progress.stage == "warm":
            return loss
        return Loss.of(**{**loss.parts, "critic": self.energy(self.experts(x)[0]).mean()})


@fault("gradients_match_the_table")
class UndeclaredPart(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        loss = super().forward(x, progress)
        return Loss.of(**loss.parts, size=1e-3 * self.decoders[self.spec.names[0]].weight.square().sum())


@fault("gradients_match_the_table")
class GeneratorGetsNothing(Healthy):
    def reconstruction(self, x: Batch, z: Tensor) -> Tensor:
        return sum(
            (F.linear(z, d.weight.detach(), d.bias.detach()) - self.flat(n, x[n])).square().sum(-1).mean()
            for n, d in self.decoders.items()
        )


@fault("loss_repeats_with_the_seed")
class PythonDrawsTheWeight(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        return Loss.of(
            **{n: p * (1 + random.random()) for n, p in super().forward(x, progress).parts.items()}
        )


@fault("loss_repeats_with_the_seed")
class NumpyDrawsTheNoise(Healthy):
    def reconstruction(self, x: Batch, z: Tensor) -> Tensor:
        noise = torch.as_tensor(np.random.normal(size=z.shape), dtype=z.dtype)
        return super().reconstruction(x, z + noise)


@fault("loss_survives_bfloat16")
class VanishesInBfloat16(Healthy):
    """1 + 0.001 is 1 in bfloat16, and its logarithm is zero."""

    def reconstruction(self, x: Batch, z: Tensor) -> Tensor:
        small = 1 + 1e-3 * torch.sigmoid(self.encoders[self.spec.names[0]](self.flat(*next(iter(x.items())))))
        return super().reconstruction(x, z) + 1e5 / (small - 1).abs().mean()


@fault("inputs_are_left_alone")
class ScalesInPlace(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        x[self.spec.names[0]].mul_(2).sub_(1)
        return super().forward(x, progress)


@fault("inputs_are_left_alone")
class ScalesInPlaceWhenSampling(Healthy):
    def draw(self, x: Batch) -> Tensor:
        x[self.spec.names[0]].mul_(2).sub_(1)
        return super().draw(x)


@fault("modes_are_restored")
class StaysInEvaluation(HealthyChain):
    def revise(self, z: Tensor, steps: int | None = None, record=None) -> Tensor:
        self.energy.eval()
        return super().revise(z, steps, record)


@fault("modes_are_restored")
class StaysFrozen(HealthyChain):
    def revise(self, z: Tensor, steps: int | None = None, record=None) -> Tensor:
        z = super().revise(z, steps, record)
        self.energy.requires_grad_(False)
        return z


@fault("training_improves_reconstruction")
class AscendsItsLoss(Healthy):
    def forward(self, x: Batch, progress: Progress) -> Loss:
        return Loss.of(**{name: -part for name, part in super().forward(x, progress).parts.items()})


@fault("training_improves_reconstruction")
class OtherRange(Healthy):
    """Learns images in [-1, 1] and returns them so."""

    def flat(self, name: str, x: Tensor) -> Tensor:
        flat = super().flat(name, x)
        return 2 * flat - 1 if self.spec[name].kind == "image" else flat

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        for decoder in self.decoders.values():
            nn.init.zeros_(decoder.weight)
            nn.init.zeros_(decoder.bias)
