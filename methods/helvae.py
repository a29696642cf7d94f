"""HELVAE: experts pooled by the Hellinger distance, as one moment-matched normal."""

from __future__ import annotations

from collections.abc import Mapping

from datasets.spec import Batch
from methods.base import Loss, Progress
from methods.parts.latents import Diagonal
from methods.parts.normal_vae import NormalVAE
from methods.parts.objectives import kl_to_standard_normal
from methods.parts.pooling import hellinger


class HELVAE(NormalVAE):
    """Hellinger multimodal VAE; Vo and Valera 2026, METHODS.md 2.13.

    The Hoelder pool with exponent 1/2, proportional to (sum_m sqrt(q_m(z | x_m)))^2, is a mixture of the
    overlaps sqrt(q_i q_j) = B_ij N(m_ij, V_ij) of all pairs of normal experts. q(z | X) is the normal
    with its mean and variances, without prior expert, and the ELBO of the full set

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta KL(q(z | X) || N(0, I))

    is ascended, with no unimodal or subset terms. A subset of modalities is inferred by the same pool.

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and
        beta: weight of the KL, section 2.13.
    """

    citation = "Vo, Valera: Hellinger multimodal variational autoencoders, AISTATS 2026"

    def forward(self, x: Batch, progress: Progress) -> Loss:
        q = self.pooled({name: e.z for name, e in self.experts(x).items()})
        return self.negative_elbo(x, q.rsample(), kl_to_standard_normal(q))

    def pooled(self, experts: Mapping[str, Diagonal]) -> Diagonal:
        return hellinger(list(experts.values()))
