"""MoPoE: a mixture of products of experts over all subsets of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.spec import Batch, DataSpec
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.posteriors import product, subsets


class MoPoE(NormalVAE):
    """Mixture-of-products-of-experts VAE; Sutter et al. 2021, METHODS.md 2.4.

    q(z | X) = (1/(2^M - 1)) sum_S q_S(z | X_S), q_S the product of the normal experts in S, with the
    prior expert N(0, I) in the product of the full set only, as the authors' code has it. With z drawn
    from q (its subset S anew for every example), the ELBO

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta (1/(2^M - 1)) sum_S KL(q_S || N(0, I))

    is ascended; the averaged KL bounds that of the mixture from above.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        beta: weight of the KL, section 2.4.
    """

    citation = "Sutter, Daunhawer, Vogt: Generalized multimodal ELBO, ICLR 2021"

    def __init__(self, spec: DataSpec, **settings: Any) -> None:
        super().__init__(spec, **settings)
        self.subsets = subsets(spec.names)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = {name: e.z for name, e in self.experts(x).items()}
        components = [self.pooled({name: experts[name] for name in subset}) for subset in self.subsets]
        return self.negative_elbo_of_mixture(x, components)

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return product(list(experts.values()), prior=len(experts) == len(self.spec) > 1)
