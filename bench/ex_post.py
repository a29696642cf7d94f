"""Ex-post density estimation: joint samples from a density fitted to encodings once training is over.

A joint sample of a VAE can fail because its decoder is bad, or because its prior puts mass where the
posterior never goes. Here the second reason is taken away, for all methods in the same way (Ghosh et al.
2020, "From variational to deterministic autoencoders", section 4): z is drawn from a normal distribution,
or from a mixture of ten, fitted to the encodings of training tuples with all modalities given; private
latents come from the prior. These samples say what a method could do with a better prior, not what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.encode import encodings
from bench.generate import BATCH, Draw, skipped
from bench.names import EX_POST
from bench.randomness import derive
from datasets.spec import Batch, DataSpec, Split
from methods.base import Method
from methods.parts.normal_mixture import find_components, sample_mixture
from metrics.rows import spread_rows

if TYPE_CHECKING:
    from bench.config import Plan

ENCODED = 5000
"""Training tuples whose encodings a density is fitted to."""


def density_samplers(
    method: Method,
    train: Split,
    *,
    device: torch.device | str,
    seed: int = 0,
    precision: str = "fp32",
    batch_size: int = BATCH,
) -> dict[str, Callable[[int], Batch]]:
    """Sampler of `EX_POST` -> what draws n joint samples with it; empty for a method that does not encode.

    The caller decides on gradients, precision and random state of the draws.
    """
    if {"encode", "joint"} & skipped(method, method.spec).keys():
        return {}
    names = method.spec.names
    rows = spread_rows(len(train), ENCODED)
    encoded = encodings(method, train, rows, names, "train", device, precision, batch_size).latents
    shared = {name: z for name, z in encoded.items() if not name.startswith("w.")}
    sizes = [z.shape[1] for z in shared.values()]
    together = torch.cat(list(shared.values()), 1)

    def draw(n: int, density: list[torch.Tensor]) -> Batch:
        parts = sample_mixture(*density, n).to(device).split(sizes, 1)
        return method.decode(dict(zip(shared, parts, strict=True)), names)

    samplers = {}
    for name, components in EX_POST.items():
        found = find_components(together, components, derive(seed, name))
        samplers[name] = partial(draw, density=[t.float() for t in (found.shares, found.means, found.roots)])
    return samplers


def ex_post_draws(densities: Mapping[str, object], plan: Plan, spec: DataSpec) -> list[Draw]:
    """What is drawn with them: as many joint samples as with the samplers of the method."""
    return [Draw("joint", (), spec.names, name, plan.joint) for name in densities]
