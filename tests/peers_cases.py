"""Our side of the comparison with MultiVae: small networks, weights, a batch, fixed noise, and the loss.

Everything is float64 and drawn from generators of its own, so that the recorded figures (`peers.json`) can be
checked without the library. The other side is in `peers_multivae.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.registry import load_method_class, method_names
from datasets.spec import Batch, DataSpec, Modality
from methods.base import Method, Progress
from methods.parts.latents import Diagonal

SPEC = DataSpec(
    (
        Modality("photo", "image", (2, 8, 8)),
        Modality("sketch", "image", (1, 8, 8)),
        Modality("caption", "text", (6,), vocabulary=9),
    )
)
BATCH, LATENT, PRIVATE = 14, 4, 3
"""14 examples: two for each of the seven subsets, among which MultiVae's MoPoE shares out a batch."""

SCALE, IMAGE_WEIGHT, TEXT_WEIGHT = 0.5, 0.6, 2.0


class TinyEncoder(nn.Module):
    """`[B, *shape]` -> location and raw scale, each `[B, size]`."""

    def __init__(self, modality: Modality, size: int) -> None:
        super().__init__()
        self.words = modality.vocabulary if modality.kind == "text" else 0
        self.layers = nn.Sequential(
            nn.Linear(math.prod(modality.shape) * max(1, self.words), 8), nn.Tanh(), nn.Linear(8, 2 * size)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.one_hot(x, self.words).double() if self.words else x
        location, raw = self.layers(x.flatten(1)).chunk(2, -1)
        return location, raw


class TinyDecoder(nn.Module):
    """`[..., size]` -> `[..., *shape]`, or logits `[..., length, vocabulary]`."""

    def __init__(self, modality: Modality, size: int) -> None:
        super().__init__()
        self.shape = (*modality.shape, modality.vocabulary) if modality.kind == "text" else modality.shape
        self.layers = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, math.prod(self.shape)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(-1, self.shape)


@dataclass(frozen=True)
class Case:
    """One comparison: our method and its hyper-parameters, MultiVae's class and its configuration.

    per_example: MultiVae returns the sum over the batch where we return the mean.
    rtol: agreement of losses and gradients; coarser where the library changes a variance (see there).
    """

    method: str
    peer: str
    hyper: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    per_example: bool = False
    rtol: float = 1e-10


LAPLACE, NORMAL, SOFTPLUS = (
    {"prior_and_posterior_dist": name} for name in ("laplace_with_softmax", "normal", "normal_with_softplus")
)
IWAE, DREG = {"loss": "iwae_looser"}, {"loss": "dreg_looser"}


def importance(method: str, peer: str, hyper: dict[str, Any], config: dict[str, Any]) -> Case:
    return Case(method, peer, hyper, {"K": hyper["samples"], "beta": hyper["beta"], **config}, True)


CASES = {
    "mvae": Case("mvae", "MVAE", {"beta": 2.5}, {"beta": 2.5, "warmup": 0}),
    "mvae_random_subsets": Case(
        "mvae", "MVAE", {"beta": 2.5, "random_subsets": 2}, {"beta": 2.5, "warmup": 0, "k": 2}
    ),
    "mvae_annealed": Case(
        "mvae",
        "MVAE",
        {"beta": 2.5, "anneal": 0.5},
        {"beta": 2.5, "warmup": 10},
    ),
    "mopoe": Case("mopoe", "MoPoE", {"beta": 2.5}, {"beta": 2.5}, rtol=1e-6),
    "mvtcae": Case(
        "mvtcae", "MVTCAE", {"alpha": 5 / 6, "beta": 2.5}, {"alpha": 5 / 6, "beta": 2.5}, rtol=1e-6
    ),
    "mmvae_iwae": importance(
        "mmvae", "MMVAE", {"samples": 3, "beta": 1.0, "family": "laplace"}, LAPLACE | IWAE
    ),
    "mmvae_dreg": importance(
        "mmvae",
        "MMVAE",
        {"samples": 3, "beta": 1.0, "family": "laplace", "estimator": "dreg"},
        LAPLACE | DREG,
    ),
    "mmvae_normal": importance(
        "mmvae", "MMVAE", {"samples": 2, "beta": 1.0, "family": "gaussian"}, NORMAL | IWAE
    ),
    "mmvaeplus_iwae": importance("mmvaeplus", "MMVAEPlus", {"samples": 1, "beta": 2.5}, LAPLACE | IWAE),
    "mmvaeplus_dreg": importance(
        "mmvaeplus", "MMVAEPlus", {"samples": 3, "beta": 1.0, "estimator": "dreg"}, LAPLACE | DREG
    ),
    "mmvaeplus_softplus": importance(
        "mmvaeplus", "MMVAEPlus", {"samples": 2, "beta": 2.5, "family": "normal"}, SOFTPLUS | IWAE
    ),
    "cmvae_iwae": importance(
        "cmvae",
        "CMVAE",
        {"samples": 1, "beta": 2.5, "clusters": 5},
        LAPLACE | IWAE | {"number_of_clusters": 5},
    ),
    "cmvae_dreg": importance(
        "cmvae",
        "CMVAE",
        {"samples": 3, "beta": 1.0, "clusters": 5, "estimator": "dreg"},
        LAPLACE | DREG | {"number_of_clusters": 5},
    ),
}
PAIRS_DRAWN = [2, 0]
"""Which pairs of modalities the random subsets of MVAE are."""

ANNEALED = {"epoch": 3, "batch_ratio": 0.5}
NOW = Progress("train", 0, 1000)
QUARTER = Progress("train", 125, 1000)
"""A quarter of the annealing of both sides: (3 - 1 + 0.5) / 10, and 125 of 500 steps."""


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    return {
        m.name: torch.rand(BATCH, *m.shape, generator=generator, dtype=torch.float64)
        if m.kind == "image"
        else torch.randint(0, m.vocabulary, (BATCH, *m.shape), generator=generator)
        for m in SPEC
    }


def available(case: Case) -> bool:
    """Whether the suite has the method of this case."""
    return case.method in method_names()


def instance(case: Case) -> Method:
    """Our method with tiny networks; every parameter, learned priors too, is drawn anew by its name."""
    hyper = {"latent": LATENT, "network": "cnn", "width": 8, "likelihood": "laplace", **case.hyper}
    hyper |= {"likelihood_scale": SCALE, "image_weight": IMAGE_WEIGHT, "text_weight": TEXT_WEIGHT}
    private = PRIVATE if case.method in ("mmvaeplus", "cmvae") else 0
    method = load_method_class(case.method)(SPEC, **hyper, **({"private": private} if private else {}))
    for m in SPEC:
        method.encoders[m.name].towers = nn.ModuleList([TinyEncoder(m, private + LATENT)])
        method.decoders[m.name] = TinyDecoder(m, private + LATENT)
    method.double()
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


class Noise:
    """The standard noise of a case, and the order in which either side asks for it."""

    def __init__(self, case: Case) -> None:
        self.generator = torch.Generator().manual_seed(11)
        self.laplace = case.hyper.get("family", "laplace") == "laplace" and "samples" in case.hyper
        count, samples = len(SPEC), case.hyper.get("samples", 1)
        if case.method == "mvae":
            every = self.draw(1 + count + case.hyper.get("random_subsets", 0), BATCH, LATENT)
            self.ours, self.theirs = [every], list(every)
        elif case.method in ("mopoe", "mvtcae"):
            self.ours = self.theirs = [self.draw(BATCH, LATENT)]
        else:
            z = self.draw(count, samples, BATCH, LATENT)
            self.ours = self.theirs = list(z)
            if case.method != "mmvae":
                w = self.draw(count, samples, BATCH, PRIVATE)
                r = self.draw(count, count, samples, BATCH, PRIVATE)  # r[n][m] fills w_n when expert m gave z
                self.ours = [*z, *w, *r]
                self.theirs = [
                    e for m in range(count) for e in (z[m], w[m], *(r[n][m] for n in range(count) if n != m))
                ]

    def draw(self, *shape: int) -> Tensor:
        if not self.laplace:
            return torch.randn(shape, generator=self.generator, dtype=torch.float64)
        # A difference of exponentials.
        first, second = torch.rand((2, *shape), generator=self.generator, dtype=torch.float64)
        return torch.log1p(-second) - torch.log1p(-first)


class Queue:
    """Hands prepared draws out, one a call, and insists on their shapes and on all of them being used."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.left = list(draws)

    def next(self, shape: Sequence[int]) -> Tensor:
        assert self.left, f"one draw too many, of shape {tuple(shape)}"
        draw = self.left.pop(0)
        assert draw.shape == torch.Size(shape), f"asked for {tuple(shape)}, prepared {tuple(draw.shape)}"
        return draw


@contextmanager
def prepared(draws: Sequence[Tensor]) -> Iterator[None]:
    """Inside, our reparametrised draws take this noise, in order; discrete choices are fixed too."""
    queue = Queue(draws)

    def rsample(self: Diagonal, *leading: int) -> Tensor:
        return self.location + self.scale * queue.next((*leading, *self.location.shape))

    def slices(high: int, size: tuple[int, ...], **_: Any) -> Tensor:
        """Component by position in the batch, in equal parts: the library's way (METHODS trap 16)."""
        return torch.arange(high).repeat_interleave(size[0] // high)

    def permutation(count: int) -> Tensor:
        return torch.tensor([*PAIRS_DRAWN, *(i for i in range(count) if i not in PAIRS_DRAWN)])

    with (
        patch.object(Diagonal, "rsample", rsample),
        patch.object(torch, "randint", slices),
        patch.object(torch, "randperm", permutation),
    ):
        yield
    assert not queue.left, f"{len(queue.left)} prepared draws were not asked for"


def our_loss(case: Case, method: Method) -> Tensor:
    """Our training loss on the batch, under the case's noise."""
    x, noise = batch(), Noise(case)
    with prepared(noise.ours):
        return method(x, QUARTER if "anneal" in case.hyper else NOW).total


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """Euclidean norm of the gradient to all parameters together."""
    flows = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.square().sum()) for g in flows if g is not None))
