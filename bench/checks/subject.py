"""The method under examination: small instances of it, tiny structured data, and the ways to drive it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec, Modality
from methods.base import Loss, Method, Progress, Stage

BATCH = 11
"""Examples in a batch. A prime that no layer width or picture side is a multiple of, so that the batch
dimension of any random draw can be recognised by its size (see `randomness.PermutedNoise`)."""

IMAGES = DataSpec(tuple(Modality(f"m{i}", "image", (3, 28, 28)) for i in range(3)))
MIXED = DataSpec(
    (
        Modality("photo", "image", (3, 28, 28)),
        Modality("sketch", "image", (3, 28, 28)),
        Modality("caption", "text", (6,), vocabulary=13),
    )
)
SPECS: dict[str, DataSpec] = {"images": IMAGES, "mixed": MIXED}


@contextmanager
def own_generators() -> Iterator[None]:
    """Restore the generators of torch (CPU), NumPy and Python after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def toy_batch(spec: DataSpec, n: int = BATCH, seed: int = 0, bright: float = 0.5) -> Batch:
    """`n` tuples of three classes: a stripe pattern per class and modality under noise, around `bright`."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % 3
    batch: Batch = {}
    for position, modality in enumerate(spec):
        if modality.kind == "text":
            (length,) = modality.shape
            usable = modality.vocabulary - 3
            token = 3 + (classes[:, None] * length + torch.arange(length)) % usable
            noise = torch.randint(3, modality.vocabulary, (n, length), generator=generator)
            keep = torch.rand(n, length, generator=generator) < 0.7
            batch[modality.name] = torch.where(keep, token, noise)
            continue
        c, h, w = modality.shape
        rows = torch.linspace(0, 6.283, h)[None] * (1 + classes[:, None]) + position
        stripes = torch.sin(rows)[:, None, :, None].expand(n, c, h, w)
        noise = torch.rand(n, c, h, w, generator=generator) - 0.5
        room = min(bright, 1 - bright)
        batch[modality.name] = (bright + room * (0.6 * stripes + 0.6 * noise)).clamp(0, 1)
    return batch


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, in order of size."""
    return [s for size in range(1, len(names) + 1) for s in combinations(names, size)]


def losses(outcome: Loss | Sequence[Loss] | Iterator[Loss]) -> Iterator[Loss]:
    """What `forward` returned, one loss at a time (a generator goes on only after its step)."""
    if isinstance(outcome, Loss):
        yield outcome
    else:
        yield from outcome


@dataclass
class Subject:
    """A method class on one spec.

    make: builds an instance, keyword arguments override the small hyper-parameters `hyper`.
    """

    make: Callable[..., Method]
    spec: DataSpec
    hyper: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    excused: Mapping[str, str] = field(default_factory=dict)

    def fresh(self, seed: int = 0, **overrides: Any) -> Method:
        """A new instance with weights drawn from `seed`, in evaluation mode."""
        torch.manual_seed(seed)
        return self.make(**overrides).eval()

    def data(self, n: int = BATCH, seed: int = 0, bright: float = 0.5) -> Batch:
        return toy_batch(self.spec, n, seed, bright)

    def pairs(self, method: Method, task: str) -> list[tuple[str, int | None]]:
        """Samplers that serve `task`, each with its own number of steps."""
        return [(name, None) for name, tasks in method.samplers.items() if task in tasks]


def trainable(method: Method, stage: Stage) -> None:
    """Let only the groups of `stage` require gradient, as the harness does."""
    groups = method.param_groups()
    wanted = {id(p) for name in stage.groups for p in groups[name].params}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def moments(stage: Stage) -> list[Progress]:
    """The beginning, the middle and the end of a stage."""
    return [
        Progress(stage.name, 0, 100, 0),
        Progress(stage.name, 50, 100, 5),
        Progress(stage.name, 99, 100, 40),
    ]


def train(
    method: Method,
    batches: Sequence[Batch],
    steps: int,
    lr: float | None = None,
    after: Callable[[Stage], None] | None = None,
) -> None:
    """`steps` steps in every stage; `after(stage)` looks at the gradients of each.

    Every entry moves by the rate against the sign of its gradient, as in Adam's first step. (Importing
    torch's optimisers would take longer than all checks together.)
    """
    method.train()
    for stage in method.stages:
        trainable(method, stage)
        groups = method.param_groups()
        rates = {name: lr or stage.rate * groups[name].lr for name in stage.groups}
        for step in range(steps):
            progress = Progress(stage.name, step, steps, step)
            for loss in losses(method(batches[step % len(batches)], progress)):
                method.zero_grad(set_to_none=True)
                loss.total.backward()
                if after is not None:
                    after(stage)
                with torch.no_grad():
                    for name, rate in rates.items():
                        for p in groups[name].params:
                            if p.grad is not None:
                                p.sub_(p.grad.sign(), alpha=rate)
    method.zero_grad(set_to_none=True)
    method.requires_grad_(True).eval()


def groups_of(method: Method) -> dict[int, str]:
    """Identity of a parameter -> name of its group."""
    return {id(p): name for name, group in method.param_groups().items() for p in group.params}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal keys and bit-for-bit equal tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 1e-3) -> bool:
    """Equal keys, and values within `tolerance` of the largest entry; tokens may differ in one of fifty."""
    if a.keys() != b.keys():
        return False
    for key, value in a.items():
        other = b[key]
        if value.shape != other.shape:
            return False
        if not value.is_floating_point():
            if (value != other).float().mean() > 0.02:
                return False
        elif (value - other).abs().max() > tolerance * value.abs().max().clamp_min(1e-3):
            return False
    return True


def state_of(method: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, persistent or not."""
    named = [*method.named_parameters(), *method.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}
