"""One stage's optimiser: Adam per parameter group, rates, clipping, frozen groups, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import TrainConfig
from bench.device import autocast
from bench.names import closest
from datasets.spec import Batch, UserError
from methods.base import Loss, Method, ParamGroup, Progress, Stage


def stage_steps(stages: tuple[Stage, ...], steps: int) -> list[int]:
    """The step budget cut by the stages' shares; the parts add up to `steps`."""
    total = sum(stage.share for stage in stages)
    ends, share = [], 0.0
    for stage in stages:
        share += stage.share / total
        ends.append(round(share * steps))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def stage_file(name: str) -> str:
    """Where the weights at the end of a stage are kept."""
    return f"stage-{name}.safetensors"


def stage_groups(method: Method, stage: Stage) -> dict[str, ParamGroup]:
    """The parameter groups that train in `stage`.

    Raises UserError for a stage that names a group the method does not have.
    """
    groups = method.param_groups()
    for name in stage.groups:
        if name not in groups:
            title = type(method).__name__
            raise UserError(
                f"stage '{stage.name}' of {title} names no group of it, '{name}'{closest(name, groups)}"
            )
    return {name: groups[name] for name in stage.groups if groups[name].params}


@contextmanager
def only(method: Method, groups: Iterable[ParamGroup]) -> Iterator[None]:
    """Parameters of `groups` and no others ask for gradients inside; restored after."""
    chosen = {id(p) for group in groups for p in group.params}
    flags = [(p, p.requires_grad) for p in method.parameters()]
    for p, _ in flags:
        p.requires_grad_(id(p) in chosen)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def losses_of(
    method: Method, batch: Batch, progress: Progress, device: torch.device, precision: str
) -> Iterator[Loss]:
    """The losses of one batch, one at a time: a method may compute the next after a step on the last."""
    with autocast(device, precision):
        outcome = method(batch, progress)
    remaining = iter([outcome] if isinstance(outcome, Loss) else outcome)
    while True:
        with autocast(device, precision):
            loss = next(remaining, None)
        if loss is None:
            return
        yield loss


class StageOptimiser:
    """Adam over the groups of one stage.

    The rate of a group at a step is factor * lr * decay^epoch * schedule(step), a function of the position
    alone, so that nothing but Adam's moments has to be stored.
    """

    def __init__(
        self,
        groups: Mapping[str, ParamGroup],
        config: TrainConfig,
        steps: int,
        per_epoch: int,
        factor: float = 1.0,
    ) -> None:
        self.groups, self.schedule = list(groups.values()), config.schedule
        self.steps, self.per_epoch, self.factor = steps, per_epoch, factor
        settings = [
            {
                "params": g.params,
                "lr": g.lr,
                "betas": tuple(g.betas),
                "weight_decay": g.weight_decay,
                "amsgrad": g.amsgrad,
            }
            for g in self.groups
        ]
        self.adam = torch.optim.Adam(settings, fused=True)

    def rate(self, group: ParamGroup, step: int) -> float:
        """Learning rate of `group` at `step` of the stage."""
        factor = 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.factor * group.lr * group.decay ** (step // self.per_epoch) * factor

    def descend(self, loss: Tensor, step: int) -> None:
        """One step down `loss`: backward, clip each group, Adam. Groups without gradient stay put."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        for group, setting in zip(self.groups, self.adam.param_groups, strict=True):
            if group.clip is not None:
                nn.utils.clip_grad_norm_(group.params, group.clip)
            setting["lr"] = self.rate(group, step)
        self.adam.step()

    def state(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)


def descend_all(
    method: Method,
    optimiser: StageOptimiser,
    batch: Batch,
    progress: Progress,
    device: torch.device,
    precision: str,
) -> Iterator[Loss]:
    """One training step: an optimiser step for each loss of the batch; yields every loss after its own."""
    for loss in losses_of(method, batch, progress, device, precision):
        optimiser.descend(loss.total, progress.step)
        yield loss


class Average:
    """Exponential moving average of the parameters; buffers are taken as they are.

    An average of the unit vectors of spectral normalisation, say, would not be a unit vector.

    decay_t = min(decay, (1 + t) / (10 + t)), so that the first steps do not hold it back.
    """

    def __init__(self, method: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {k: t.detach().clone() for k, t in method.state_dict().items()}

    @torch.no_grad()
    def update(self, method: nn.Module) -> None:
        """Move towards the present weights."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = {name for name, _ in method.named_parameters(remove_duplicate=False)}
        for name, tensor in method.state_dict().items():
            if name in parameters:
                self.values[name].lerp_(tensor, weight)
            else:
                self.values[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        for name, tensor in state["values"].items():
            self.values[name].copy_(tensor)
        self.updates = int(state["updates"])
