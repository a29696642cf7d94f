"""MCMC inference: a short Langevin chain on p(z | x_S, w_S) from the encoders' sample (METHODS.md 2.8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from datasets.spec import Batch, UserError
from methods.base import Chain
from methods.parts.energy_prior import EnergyPrior, prior_chain
from methods.parts.langevin import Record, State, frozen, langevin
from methods.parts.latents import Expert
from methods.parts.recording import Recorder
from methods.parts.vae import MultimodalVAE


@dataclass(frozen=True)
class PosteriorChain:
    """T steps z <- z + (s^2/2) grad_z log p_alpha(z, x_S | w_S) + s eps, at fixed private latents w_S, with

        log p_alpha(z, x_S | w_S) = log p_0(z) - U(z) + sum_{m in S} lambda_m log p_m(x_m | z, w_m) + const.

    steps T, step_size s; max_drift: largest norm of an example's drift in one step, 0 for none.
    """

    steps: int
    step_size: float
    max_drift: float

    def __post_init__(self) -> None:
        if self.steps < 0 or self.step_size <= 0 or self.max_drift < 0:
            raise UserError(
                f"a posterior chain of {self.steps} steps of {self.step_size}, drift up to {self.max_drift}, "
                "is impossible; give posterior_steps and posterior_max_drift >= 0 and posterior_step_size > 0"
            )

    def length(self, steps: int | None = None) -> int:
        """The number of steps to run: the given one, or the chain's own."""
        return self.steps if steps is None else steps

    def run(
        self,
        method: MultimodalVAE,
        prior: EnergyPrior,
        z: Tensor,
        private: Mapping[str, Tensor],
        x: Batch,
        steps: int | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """z^T `[B, latent]` from z^0 = `z`; S are the modalities in `x`, `private` holds their w_m."""

        def energy(state: State) -> Tensor:
            fit = sum(method.log_likelihoods(x, state["z"], private or None).values())
            return -(prior.log_prob(state["z"]) + fit)

        count, s, bound = self.length(steps), self.step_size, self.max_drift or None
        with frozen(method.decoders):
            state, _ = langevin({"z": z}, energy, count, s, s, bound, record)
        return state["z"]

    def record(
        self, method: MultimodalVAE, prior: EnergyPrior, x: Batch, steps: int | None, every: int
    ) -> Chain:
        """The chain given `x`, decoded along the way with fixed private latents; `values` are
        sum_{m in S} lambda_m log p_m(x_m | z, w_m)."""
        z, private = draw_posterior(method, method.experts(x))
        missing = [name for name in method.spec.names if name not in x]
        own = {f"w.{name}": w for name, w in private.items()}
        own |= {f"w.{name}": method.draw_private(len(z)) for name in missing if method.private}
        recorder = Recorder(
            self.length(steps),
            every,
            lambda state: method.decode({**state, **own}, method.spec.names),
            lambda state: sum(method.log_likelihoods(x, state["z"], private or None).values()),
            step_size=self.step_size,
            noise=self.step_size,
        )
        self.run(method, prior, z, private, x, steps, recorder)
        return recorder.chain("posterior", "log_likelihood")


DIAGNOSTIC = PosteriorChain(20, 0.1, 1.0)
"""The posterior chain of methods that infer without one, to look at only; the setting of MOE-EBM."""


def latent_chain(
    method: MultimodalVAE,
    prior: EnergyPrior,
    posterior: PosteriorChain,
    kind: str,
    x: Batch | None,
    n: int,
    steps: int | None,
    every: int,
) -> Chain:
    """The `prior` chain from p_0, or the `posterior` chain given the first `n` tuples of `x`, recorded.

    Raises ValueError for another kind, or for a posterior chain without `x`.
    """
    if kind == "prior":
        return prior_chain(method, prior, n, steps, every)
    if kind != "posterior" or not x:
        name = type(method).__name__
        raise ValueError(f"{name} runs a 'prior' chain, or a 'posterior' chain given x")
    return posterior.record(method, prior, {m: v[:n] for m, v in x.items()}, steps, every)


def draw_posterior(method: MultimodalVAE, experts: Mapping[str, Expert]) -> tuple[Tensor, dict[str, Tensor]]:
    """z ~ q(z | X_S) `[B, latent]` and w_m ~ q_m(w_m | x_m) for every m in S, without gradient."""
    fixed = {name: e.detach() for name, e in experts.items()}
    z = method.posterior_sample({name: e.z for name, e in fixed.items()})
    return z, {name: e.w.rsample() for name, e in fixed.items() if e.w is not None}
