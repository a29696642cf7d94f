"""mmJSD: a mixture of experts held to a dynamic prior by a Jensen-Shannon divergence."""

from __future__ import annotations

from typing import Any

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, Progress
from methods.parts.normal_vae import NormalVAE
from methods.parts.normals import jensen_shannon, standard_normal_like
from methods.parts.posteriors import mixture_rsample
from methods.parts.vae import MultimodalVAE


class MMJSD(NormalVAE):
    """Multimodal VAE with a Jensen-Shannon divergence; Sutter et al. 2020, METHODS.md 2.3.

    q(z | X) = (1/M) sum_m q_m(z | x_m), normal experts. The dynamic prior is the abstract mean of experts
    and static prior q_0 = p(z) = N(0, I), here their geometric mean (a weighted product of experts):

        p_dyn(z | X) ~ prod_{nu=0..M} q_nu(z)^{pi_nu}

    With z drawn from q (its expert anew for every example), the bound

        L = E_q sum_m lambda_m log p_m(x_m | z) - beta sum_{nu=0..M} pi_nu KL(q_nu || p_dyn)

    is ascended; the gradient passes through p_dyn too. Given several modalities, samples come from the
    mixture of their experts (the authors' code; METHODS.md 2.3).

    Hyper-parameters: those of MultimodalVAE (METHODS.md 1.3 to 1.5), and, section 2.3,
        beta: weight of the divergence.
        prior_weight: pi_0, the experts share the rest; None: 1/(M+1), as published.
        prior_component: z is drawn from sum_nu pi_nu q_nu, p(z) included, as the authors' code has it;
            decoders then see draws of the prior with the data as their target.
    """

    citation = (
        "Sutter, Daunhawer, Vogt: Multimodal generative learning utilizing Jensen-Shannon-divergence, "
        "NeurIPS 2020"
    )

    def __init__(
        self,
        spec: DataSpec,
        *,
        prior_weight: float | None = None,
        prior_component: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(spec, **settings)
        own = 1 / (len(spec) + 1) if prior_weight is None else prior_weight
        if not 0 <= own <= 1:
            raise UserError(f"prior_weight={own} is impossible; give a weight in [0, 1], or None for 1/(M+1)")
        self.prior_component = prior_component
        self.weights = (own, *[(1 - own) / len(spec)] * len(spec))

    def forward(self, x: Batch, progress: Progress) -> Loss:
        experts = [e.z for e in self.experts(x).values()]
        components = [standard_normal_like(experts[0]), *experts]
        z = mixture_rsample(components, self.weights) if self.prior_component else mixture_rsample(experts)

        log_likelihood = sum(self.log_likelihoods(x, z).values())
        divergence = jensen_shannon(components, self.weights)
        bound = log_likelihood - self.beta * divergence

        return Loss(
            -bound.mean(),
            {"bound": bound.mean(), "log_likelihood": log_likelihood.mean(), "js": divergence.mean()},
        )

    # The mixture of the given experts, not one normal.
    posterior_mean = MultimodalVAE.posterior_mean
    posterior_sample = MultimodalVAE.posterior_sample
