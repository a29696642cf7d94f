"""`ours` with private latents w_m beside the shared z (P1 section 3.3; METHODS 2.15).

Model      p_w(X, z, W) = p_0(z) prod_m p_0(w_m) N(x_m; G_m(z, w_m), sigma^2 I)       (Eqn 16)
Inference  q_f(z, W|X) = [(1/M) sum_m q_m(z|x_m)] prod_m q_m(w_m|x_m)
Revision   both chains as in `ours`; the latent chain moves z and all w_m together.
Cross generation draws the w_m of missing modalities from the prior.

Not in P1: `private_from_prior`, the share of examples in which z alone explains all pictures but one; and
`private_log_variance_high`, the upper bound for w_m (None: as for z), by which experts can be narrow in z and
broad in w_m.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch, DataSpec
from methods.parts.cooperative import Cooperative
from methods.parts.cooperative_settings import check_log_variances
from methods.parts.langevin import State
from methods.parts.latents import Expert


class OursW(Cooperative):
    """`ours_w`: shared latent z and one private latent w_m per modality, `private` numbers each."""

    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"
    latents = "shared+private"
    added: ClassVar[dict[str, object]] = {**Cooperative.added, "private_log_variance_high": None}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 32,
        private: int = 32,
        private_from_prior: float = 0.0,
        private_log_variance_high: float | None = None,
        **settings: Any,
    ) -> None:
        if not 0 <= private_from_prior <= 1:
            raise ValueError(f"private_from_prior={private_from_prior} is no share; give one in [0, 1]")
        if private < 1:
            raise ValueError(f"private={private} leaves nothing private; give 1 or more, or take `ours`")
        self.private = private  # first, since the networks are built for it
        super().__init__(spec, latent=latent, **settings)
        self.private_from_prior = private_from_prior
        own = private_log_variance_high
        self.private_log_variance_high = self.log_variance_high if own is None else own
        check_log_variances(self.log_variance_low, self.private_log_variance_high, "private_")

    def experts(self, x: Batch) -> dict[str, Expert]:
        """q_m(z | x_m) and q_m(w_m | x_m), each with its own upper bound on the log-variances."""
        z, w = self.log_variance_high, self.private_log_variance_high
        drawn = {name: self.encoders[name](image) for name, image in x.items()}
        return {name: Expert(self.bounded(e.z, z), self.bounded(e.w, w)) for name, e in drawn.items()}

    def training_start(
        self, experts: Mapping[str, Expert], chosen: Tensor | None = None
    ) -> tuple[State, Mapping[str, Tensor]]:
        """In a share of the examples, w_n of all modalities but that of z's expert is a draw of its prior.

        z then has to explain x_n by itself, in the chain and in the generator's loss, as in cross generation
        (and in the warm start); otherwise w_n takes over what modalities share (METHODS 2.15).
        """
        if not self.private_from_prior:
            return super().training_start(experts, chosen)
        rows = len(next(iter(experts.values())).z.location)
        if chosen is None:
            chosen = torch.randint(len(experts), (rows,), device=self.device)
        start = self.first_latents(experts, chosen)
        crossed = torch.rand(rows, device=self.device) < self.private_from_prior
        prior, unobserved = self.prior_draw(rows), {}
        for i, name in enumerate(f"w.{name}" for name in experts):
            unobserved[name] = crossed & (chosen != i)
            start[name] = torch.where(unobserved[name].unsqueeze(1), prior[name], start[name])
        return start, unobserved
