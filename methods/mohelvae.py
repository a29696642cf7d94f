"""MoHELVAE: a mixture of Hellinger-pooled experts over all subsets of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.pooling import hellinger, matched, overlaps
from methods.parts.posteriors import subsets


class MoHELVAE(NormalVAE):
    """Mixture of Hellinger pools, the variant of HELVAE; Vo and Valera 2026, METHODS.md 2.13.

    q(z | X) = (1/(2^M - 1)) sum_S q_S(z | X_S), q_S the moment-matched normal of the Hoelder pool
    (sum_{m in S} sqrt(q_m))^2, without prior expert, mixed as MoPoE mixes its products. With z drawn from
    q (its subset S anew for every example), the ELBO

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta (1/(2^M - 1)) sum_S KL(q_S || N(0, I))

    is ascended; the averaged KL bounds that of the mixture from above.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        beta: weight of the KL, section 2.13.
    """

    citation = "Vo, Valera: Hellinger multimodal variational autoencoders, AISTATS 2026"

    def __init__(self, spec: DataSpec, **settings: Any) -> None:
        super().__init__(spec, **settings)
        self.subsets = subsets(range(len(spec)))

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        pairs = overlaps(experts)  # once for all subsets
        components = [matched(pairs.among(subset), experts[0].location.dtype) for subset in self.subsets]
        return self.negative_elbo_of_mixture(x, components)

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return hellinger(list(experts.values()))
