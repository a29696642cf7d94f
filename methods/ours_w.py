"""`ours` with private latents w_m beside the shared z (P1 section 3.3; METHODS 2.15).

Model      p_w(X, z, W) = p_0(z) prod_m p_0(w_m) N(x_m; G_m(z, w_m), sigma^2 I)       (Eqn 16)
Inference  q_f(z, W|X) = [(1/M) sum_m q_m(z|x_m)] prod_m q_m(w_m|x_m)
Revision   both chains as in `ours`; the latent chain moves z and all w_m together.
Cross generation draws the w_m of missing modalities from the prior.
"""

from __future__ import annotations

from typing import Any

from datasets.spec import DataSpec
from methods.parts.cooperative import Cooperative


class OursW(Cooperative):
    """`ours_w`: shared latent z and one private latent w_m per modality, `private` numbers each."""

    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"
    latents = "shared+private"

    def __init__(self, spec: DataSpec, *, latent: int = 32, private: int = 32, **settings: Any) -> None:
        self.private = private  # first, since the networks are built for it
        super().__init__(spec, latent=latent, **settings)
