"""The contract between a method and the harness.

A method is an `nn.Module` built from a `DataSpec` and its own keyword hyper-parameters. The harness
calls `forward` to train, `joint_generate`, `cross_generate` and `encode` to score, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec

Task = str
"""One of `joint`, `cross`, `encode`, `interpolate`, `chain`."""


@dataclass(frozen=True)
class Stage:
    """One training stage: a name, the parameter groups that train, its share of the step budget.

    `rate` is a factor on the learning rates of all groups during this stage.
    """

    name: str
    groups: tuple[str, ...]
    share: float = 1.0
    rate: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where training stands: stage name, step within the stage (from 0), its steps, whole epochs done."""

    stage: str
    step: int
    steps: int
    epoch: int = 0

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        return self.step / max(1, self.steps)


@dataclass
class ParamGroup:
    """Parameters that share one optimiser setting (Adam).

    `clip` is the largest gradient norm of the group (None: no clipping), `decay` the factor on the
    rate after every epoch, `weight_decay` the L2 penalty added to the gradient.
    """

    params: list[nn.Parameter]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    amsgrad: bool = False
    clip: float | None = None
    decay: float = 1.0


@dataclass
class Loss:
    """A scalar to descend, with its summands.

    `total` is the sum of `parts`; each part keeps its graph, so that a check can ask which parameter
    groups receive gradient from it. `terms` are detached numbers for the log.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = self.parts or {"total": self.total}
        self.terms = {name: torch.as_tensor(t).detach() for name, t in self.terms.items()}

    @classmethod
    def of(cls, terms: Mapping[str, Tensor] | None = None, **parts: Tensor) -> Loss:
        """Sum named parts; they enter the log beside `terms`."""
        return cls(sum(parts.values()), {**parts, **(terms or {})}, dict(parts))  # type: ignore[arg-type]


@dataclass
class Trace:
    """Numbers along B chains, before every step and after the last; P fixed random directions.

    energies `[steps + 1, B]`; displacement `[steps + 1, B]`, root mean square of the entries' distance from
    the start; projections `[steps + 1, B, P]` of the state; acceptance `[steps, B]` in [0, 1], with which
    Metropolis and Hastings would have accepted each step (None for a chain without noise).
    """

    energies: Tensor
    displacement: Tensor
    projections: Tensor
    acceptance: Tensor | None


@dataclass
class Chain:
    """The states of a Markov chain: `frames[i]` are the decoded images [0, 1] (or tokens) after
    `at[i]` steps, `values` `[steps + 1, B]` is `quantity` (`energy` or `log_likelihood`) at every step.
    `trace`: what the diagnostics of the chain need, None where a method does not give it.
    """

    kind: str
    quantity: str
    at: list[int]
    frames: list[Batch]
    values: Tensor
    trace: Trace | None = None


class Diverged(Exception):
    """Raised by a method during training when its chains ran away; the message is the reason."""


class Method(nn.Module):
    """Base of every method. Subclasses implement the members that raise NotImplementedError.

    Class attributes:
        citation: one line, authors, title, venue.
        latents: `shared` or `shared+private`.
        samplers: sampler name -> tasks (`joint`, `cross`) it can serve; the first is the default.
        chains: kinds of chain (`data`, `posterior`, `prior`) that `chain` can run.
        memory: GB that encoders and decoders may keep for the backward pass of one step, where a method
            can save memory at the price of time; `train.memory` of the harness. Changes rounding only.
        added: hyper-parameters that came when records existed -> their default, which is what was before. A
            run that has the default is named as if they were not there.

    Class attributes for `bench check`, all optional:
        choices: hyper-parameter -> its allowed values, where the annotation does not list them.
        small: hyper-parameters of a quick small instance, on top of sizes cut by name.
        excused: check, or `check[item]` (a hyper-parameter, a parameter) -> why it does not apply here.
    """

    citation: ClassVar[str] = ""
    latents: ClassVar[str] = "shared"
    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {"ancestral": ("joint", "cross")}
    chains: ClassVar[tuple[str, ...]] = ()
    memory: float = 1.0
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    added: ClassVar[Mapping[str, Any]] = {}
    small: ClassVar[Mapping[str, Any]] = {}
    excused: ClassVar[Mapping[str, str]] = {}

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Training stages in order; their shares sum to 1."""
        return (Stage("train", tuple(self.param_groups())),)

    @property
    def fitted(self) -> Sequence[tuple[Tensor, int]]:
        """Tensors that samplers read and no optimiser trains, each with how many free numbers it holds."""
        return ()

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Stage -> part of the loss -> parameter groups that receive gradient from it."""
        return {stage.name: {"total": stage.groups} for stage in self.stages}

    def forward(self, x: Batch, progress: Progress) -> Loss | Iterable[Loss]:
        """Training loss of one batch. Several losses mean one optimiser step each, in order.

        They are consumed one by one, so a generator can compute the second loss after the first step.
        """
        raise NotImplementedError

    def param_groups(self) -> dict[str, ParamGroup]:
        """Parameter groups by name: `generator`, `inference`, `prior`, `energy`, `diffusion`."""
        raise NotImplementedError

    def encode(self, given: Batch) -> dict[str, Tensor]:
        """Deterministic latents `[B, D]` of any non-empty subset: `z`, and `w.<modality>` if private."""
        raise NotImplementedError

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        """`n` draws from the prior: `z`, and `w.<modality>` where there are private latents."""
        raise NotImplementedError

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        """Decoder locations as images in [0, 1] (text: token ids). Missing `w.*` come from the prior."""
        raise NotImplementedError

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        """`n` unconditional tuples. `steps` overrides the sampler's number of refinement steps."""
        check_sampler(self, sampler, "joint")
        return self.decode(self.sample_prior(n), self.spec.names)

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        """`targets` given any non-empty subset; a target that is also given is a reconstruction."""
        raise NotImplementedError

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        """Run a chain of `kind` and keep a frame every `every` steps; `x` are observations if needed."""
        raise NotImplementedError(f"{type(self).__name__} runs no '{kind}' chain")

    def assign(self, x: Batch, held_out: Batch) -> Tensor | None:
        """Cluster `[B]` of every tuple, for clustering scores alone; None for a method without clusters.

        On `held_out` the method may choose which of its clusters count.
        """
        return None

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        """Sequential network evaluations per sample."""
        return 1

    @classmethod
    def unsupported(cls, spec: DataSpec, task: Task) -> str | None:
        """Why this method cannot do `task` on data of this spec; None if it can."""
        if task == "chain" and not cls.chains:
            return f"{cls.__name__} runs no Markov chain"
        return None


def check_sampler(method: Method, sampler: str | None, task: Task) -> str:
    """The sampler to use for `task`: the given name, or the first that serves the task.

    Raises ValueError for a name the method does not have or that does not serve the task.
    """
    serving = [name for name, tasks in method.samplers.items() if task in tasks]
    if sampler is None and serving:
        return serving[0]
    if sampler not in serving:
        raise ValueError(
            f"{type(method).__name__} has no sampler '{sampler}' for {task}; choose from {serving}"
        )
    return sampler
