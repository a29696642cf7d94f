"""Ex-post density estimation: joint samples from a density fitted to encodings once training is over.

A joint sample of a VAE can fail because its decoder is bad, or because its prior puts mass where the
posterior never goes. Here the second reason is taken away, for all methods in the same way (Ghosh et al.
2020, "From variational to deterministic autoencoders", section 4): z is drawn from a normal distribution,
or from a mixture of ten, fitted to the encodings of training tuples with all modalities given; private
latents come from the prior. These samples say what a method could do with a better prior, not what it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.encode import encodings
from bench.generate import BATCH, Draw, skipped
from bench.names import EX_POST
from bench.randomness import derive
from datasets.spec import Batch, DataSpec, Split
from methods.base import Method
from metrics.fd_clf import spread_rows

if TYPE_CHECKING:
    from bench.config import Plan

ENCODED = 5000
"""Training tuples whose encodings a density is fitted to."""

JITTER = 1e-6
"""Added to every relative variance, as in scikit-learn's mixtures; latents that are not used do not vary."""


@dataclass(frozen=True)
class NormalMixture:
    """sum_k pi_k N(mu_k, L_k L_k^T): `weights` `[K]`, `means` `[K, D]`, `roots` `[K, D, D]`, on the CPU."""

    weights: Tensor
    means: Tensor
    roots: Tensor

    def sample(self, n: int) -> Tensor:
        """Draws `[n, D]` from torch's global generator."""
        of = torch.multinomial(self.weights, n, replacement=True)
        noise = torch.randn(n, self.means.shape[1])
        return self.means[of] + (self.roots[of] @ noise.unsqueeze(-1)).squeeze(-1)


def fit(z: Tensor, components: int, seed: int) -> NormalMixture:
    """Maximum likelihood for encodings `[N, D]`: a mixture of normals of full covariance by EM."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.mixture import GaussianMixture

    # In units of the encodings, so that the jitter means the same for small and large ones.
    centre, unit = z.double().mean(0), z.double().std(0).clamp_min(JITTER)
    model = GaussianMixture(min(components, len(z)), reg_covar=JITTER, random_state=seed)
    with warnings.catch_warnings():
        # Of encodings with fewer distinct values than components, or of EM that stops after its 100 steps.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(((z.double() - centre) / unit).numpy())
    weights, means, covariances = (
        torch.from_numpy(found) for found in (model.weights_, model.means_, model.covariances_)
    )
    roots = unit.unsqueeze(1) * torch.linalg.cholesky(covariances)
    return NormalMixture(weights.float(), (centre + unit * means).float(), roots.float())


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
    rows = spread_rows(len(train), min(ENCODED, len(train)))
    found = encodings(method, train, rows, names, "train", device, precision, batch_size).latents
    shared = {name: z for name, z in found.items() if not name.startswith("w.")}
    sizes = [z.shape[1] for z in shared.values()]
    together = torch.cat(list(shared.values()), 1)

    def sampler(density: NormalMixture) -> Callable[[int], Batch]:
        def draw(n: int) -> Batch:
            parts = density.sample(n).to(device).split(sizes, 1)
            return method.decode(dict(zip(shared, parts, strict=True)), names)

        return draw

    return {
        name: sampler(fit(together, components, derive(seed, name))) for name, components in EX_POST.items()
    }


def ex_post_draws(densities: Mapping[str, object], plan: Plan, spec: DataSpec) -> list[Draw]:
    """What is drawn with them: as many joint samples as with the samplers of the method."""
    return [Draw("joint", (), spec.names, name, plan.joint) for name in densities]
