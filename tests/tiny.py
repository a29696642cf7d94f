"""A method and a data set so small that a whole run takes a second or two; for tests of the harness.

Reached as `tiny:TinyVAE` and `tiny:TinyData` with this folder on the path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from datasets.spec import Batch, Dataset, DataSpec, Modality, Split, UserError
from methods.base import Diverged, Loss, Method, ParamGroup, Progress, Stage

SHAPE = (3, 8, 8)


class TinyVAE(Method):
    """A mean of Gaussian experts over linear networks. Draws from every generator while training.

    The second stage trains the decoders alone. `explode`: from this step on the loss is not finite;
    `diverge`: at this step the method gives up; `crash`: at this step it raises an ordinary error.
    """

    choices: ClassVar = {"kind": ("left", "right")}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 4,
        beta: float = 1.0,
        lr: float = 1e-2,
        clip: float = 0.0,
        warm: float = 0.5,
        two_losses: bool = False,
        explode: int = -1,
        diverge: int = -1,
        crash: int = -1,
        width: int = 8,
        mode: Literal["plain", "fancy"] = "plain",
        kind: str = "left",
    ) -> None:
        super().__init__(spec)
        if latent < 1:
            raise ValueError("latent must be positive")
        self.beta, self.lr, self.clip, self.warm = beta, lr, clip, warm
        self.latent, self.two_losses = latent, two_losses
        self.explode, self.diverge, self.crash = explode, diverge, crash
        sizes = {m.name: m.size for m in spec}
        self.inner = nn.ModuleDict({n: nn.Linear(s, width) for n, s in sizes.items()})
        self.outer = nn.ModuleDict({n: nn.Linear(width, 2 * latent) for n in sizes})
        self.decoders = nn.ModuleDict({n: nn.Linear(latent, s) for n, s in sizes.items()})
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("warm", ("generator", "inference"), self.warm),
            Stage("polish", ("generator",), 1 - self.warm),
        )

    def param_groups(self) -> dict[str, ParamGroup]:
        clip = self.clip or None
        encoders = [*self.inner.parameters(), *self.outer.parameters()]
        return {
            "generator": ParamGroup(list(self.decoders.parameters()), lr=self.lr, clip=clip, decay=0.9),
            "inference": ParamGroup(encoders, lr=self.lr, clip=clip),
        }

    def _experts(self, x: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = {n: torch.tanh(self.inner[n](t.flatten(1) - 0.5)) for n, t in x.items()}
        both = torch.stack([self.outer[n](h) for n, h in hidden.items()]).mean(0)
        location, scale = both.chunk(2, 1)
        return location, F.softplus(scale) + 1e-3

    def forward(self, x: Batch, progress: Progress) -> Loss | list[Loss]:
        import random

        import numpy as np

        step = progress.step + (0 if progress.stage == "warm" else 10**6)
        if step == self.diverge:
            raise Diverged("the chains ran away")
        if step == self.crash:
            raise KeyError("a planted fault")
        if self.training:
            self.calls += 1
        location, scale = self._experts(x)
        # Noise from all three generators, so that a resume that forgets one of them is found out.
        jitter = 1 + 0.01 * (random.random() + np.random.rand())
        z = location + jitter * scale * torch.randn_like(scale)
        parts = {n: ((d(z) - x[n].flatten(1)) ** 2).sum(1).mean() for n, d in self.decoders.items()}
        kl = self.beta * 0.5 * (location**2 + scale**2 - 1 - 2 * scale.log()).sum(1).mean()
        if 0 <= self.explode <= step:
            kl = kl + float("nan")
        total = sum(parts.values())
        if self.two_losses:
            return [Loss(total + kl, {"kl": kl}), Loss(self._again(x), {})]
        return Loss(total + kl, {"kl": kl})

    def _again(self, x: Batch) -> torch.Tensor:
        location, _ = self._experts(x)
        return sum(((d(location) - x[n].flatten(1)) ** 2).sum(1).mean() for n, d in self.decoders.items())

    def encode(self, given: Batch) -> dict[str, torch.Tensor]:
        return {"z": self._experts(given)[0]}

    def sample_prior(self, n: int) -> dict[str, torch.Tensor]:
        return {"z": torch.randn(n, self.latent, device=self.device)}

    def decode(self, latent: dict[str, torch.Tensor], targets: Sequence[str]) -> Batch:
        return {n: self.decoders[n](latent["z"]).unflatten(1, SHAPE).clamp(0, 1) for n in targets}

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        location, scale = self._experts(given)
        return self.decode({"z": location + scale * torch.randn_like(scale)}, targets)


class Refuses(TinyVAE):
    """Declares that it can do nothing with this data."""

    @classmethod
    def unsupported(cls, spec: DataSpec, task: str) -> str | None:
        return "needs captions, which this data has not"


class TinyData(Dataset):
    """Two 8 x 8 modalities sharing one of ten patterns; judges are trained on it in a moment."""

    name = "tiny"
    spec = DataSpec(tuple(Modality(n, "image", SHAPE) for n in ("a", "b")))

    def prepare(self) -> None:
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"the data folder '{self.data}' is missing; give another one with --data")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.split("test").stored["a"].numpy().tobytes()).hexdigest()[:16]

    def split(self, name: Literal["train", "val", "test"]) -> Split:
        count = {"train": 200, "val": 40, "test": 60}[name]
        generator = torch.Generator().manual_seed(len(name))
        patterns = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(9))
        digit = torch.randint(0, 10, (count,), generator=generator)
        stored = {}
        for modality in self.spec:
            noise = 0.2 * torch.rand(count, *SHAPE, generator=generator)
            stored[modality.name] = ((0.8 * patterns[digit] + noise) * 255).to(torch.uint8)
        return Split(self.spec, stored, {"digit": digit})
