"""One latent z_m per modality and nothing that couples them, as in the ablations of P1 section 5.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.parts.langevin import State
from methods.parts.latents import Expert


class SeparateLatents:
    """Replaces joint inference in `Cooperative` by one model a modality; latents are blocks `z.<modality>`.

        q(z_1..z_M | X) = prod_m q_m(z_m | x_m),   p(z_m | x_m) ~ p_0(z_m) N(x_m; G_m(z_m), sigma^2 I)

    so that the latent chain of z_m follows x_m alone, with its own bound on the drift.
    """

    apart: ClassVar[bool] = True
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[energy.head.bias]": "cancels in U(x) - U(x-); `energy_penalty` trains it",
        "hyper_parameters_act[updates]": "any ratio, not one of a list; see tests/test_ours.py",
        "hyper_parameters_act[prior_renewals]": "of a mixture; see tests/test_parts_fitted_mixture.py",
        "hyper_parameters_act[expert_mean]": "there is no mixture of experts whose mean it could weigh",
        "hyper_parameters_act[own_ends]": "every expert has a chain of its own anyway",
    }

    def code(self, latent: Mapping[str, Tensor], name: str) -> Tensor:
        """What the generator of modality `name` sees: z_m, or a z that all share."""
        return latent[f"z.{name}"] if f"z.{name}" in latent else latent["z"]

    def posterior_draw(self, experts: Mapping[str, Expert], chosen: Tensor | None = None) -> State:
        """z_m ~ q_m(z_m | x_m), independent; there is no mixture whose component could be `chosen`."""
        return {f"z.{name}": e.z.detach().rsample() for name, e in experts.items()}

    def log_joint_posterior(
        self,
        experts: Mapping[str, Expert],
        latent: Mapping[str, Tensor],
        unobserved: Mapping[str, Tensor] | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """sum_m log q_m(z_m | x_m) `[B]`; every z_m is observed, none is chosen."""
        return torch.stack([e.z.log_prob(self.code(latent, name)) for name, e in experts.items()]).sum(0)

    def elbo(self, x: Batch, experts: Mapping[str, Expert]) -> tuple[Tensor, list[State]]:
        """The ELBOs of M separate VAEs, summed, and their latents: no latent is shared.

        sum_m E_{q_m}[ log p_m(x_m | z_m) + warm_beta (log p_0(z_m) - log q_m(z_m | x_m)) ]
        """
        own = {f"z.{name}": e.z.rsample() for name, e in experts.items()}
        kl = self.log_joint_posterior(experts, own) - self.log_prior(own)
        bound = self.log_likelihood(x, self.generate(own)) - self.warm_beta * kl
        return bound.mean(), [own]
