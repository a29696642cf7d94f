"""Ablation of `ours`: independent inference models, one for every modality, that agree on no common latent.

Cui, Lao, Yu, arXiv 2605.00644, section 5.2 and Figure 3; METHODS 2.16.

Model      p_w(X, z) = p_0(z) prod_m N(x_m; G_m(z), sigma^2 I), as in `ours`       (Eqn 4)
Inference  z_m ~ q_m(z_m | x_m) for every m                                       instead of Eqn 5
Revision   of X^ = G(z), one z ~ p_0 for all, on U, as in `ours`
           of z_m on p_0(z_m) N(x_m; G_m(z_m), sigma^2 I), each by its own modality instead of Eqn 8
Losses     generator  -sum_m E[log p(x_m | z_m+)] - E[log p(x- | z)]
           inference  -sum_m E[log q_m(z_m+ | x_m)] - sum_m E[log q_m(z | x_m-)]
           energy     as in `ours`

So G_m and G_n learn from data under latents that are not aligned, and share z in the negative phase only.
Given several modalities, a draw takes the latent of one of them, chosen per example.
"""

from __future__ import annotations

import torch

from datasets.spec import Batch
from methods.parts.cooperative import Cooperative
from methods.parts.langevin import State
from methods.parts.separate_latents import SeparateLatents


class IndepInference(SeparateLatents, Cooperative):
    """`ours` without joint inference; hyper-parameters are those of `ours`."""

    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"

    def infer(self, observed: Batch, revise: bool = False, steps: int | None = None) -> State:
        latent = super().infer(observed, revise, steps)
        drawn = torch.stack([latent[f"z.{name}"] for name in observed])
        chosen = torch.randint(len(drawn), drawn.shape[1:2], device=drawn.device)
        return {"z": drawn[chosen, torch.arange(len(chosen), device=drawn.device)]}
