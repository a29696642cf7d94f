"""Ablation of `ours`: independent generators, so that nothing but the energy couples the modalities.

Cui, Lao, Yu, arXiv 2605.00644, section 5.2 and Figure 2, left; METHODS 2.16.

Model      p_w(X, z_1..z_M) = prod_m p_0(z_m) N(x_m; G_m(z_m), sigma^2 I)      instead of one z (Eqn 4)
Inference  q_f(z_1..z_M | X) = prod_m q_m(z_m | x_m)                           instead of Eqn 5
Revision   of x all modalities together on U, as in `ours`; of z_m by x_m alone
Losses     of `ours`; log q_f is a sum over modalities, U stays joint

A negative X^ = G(z) shows five digits that have nothing to do with each other. As one latent, z is
[z_1, .., z_M]; what is not observed keeps the mean of its prior, or is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.parts.cooperative import Cooperative
from methods.parts.langevin import State
from methods.parts.separate_latents import SeparateLatents


class IndepGenerators(SeparateLatents, Cooperative):
    """`ours` with a latent of `latent` numbers for every modality; hyper-parameters are those of `ours`."""

    excused = {
        **SeparateLatents.excused,
        "cross_depends_on_the_given": "what is missing is drawn independently of what is given: the ablation",
    }
    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"

    def shared_blocks(self) -> tuple[str, ...]:
        return tuple(f"z.{name}" for name in self.spec.names)

    def prior_draw(self, n: int) -> State:
        return {block: self.prior_sample(block, n, self.latent) for block in self.shared_blocks()}

    def encode(self, given: Batch) -> dict[str, Tensor]:
        experts = self.experts(self.to_model(given))
        like = next(iter(experts.values())).z.location
        means = [
            experts[name].z.location if name in experts else self.prior_mean(f"z.{name}", like)
            for name in self.spec.names
        ]
        return {"z": torch.cat(means, -1)}

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return {"z": torch.cat(list(self.prior_draw(n).values()), -1)}

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        if "z" in latent:
            blocks = latent["z"].split(self.latent, -1)
            latent = {f"z.{name}": z for name, z in zip(self.spec.names, blocks, strict=True)}
        return super().decode(latent, targets)
