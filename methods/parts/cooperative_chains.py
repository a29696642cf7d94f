"""The two chains of `Cooperative`: where they start, what they follow, where they end (P1 Eqn 3, 8, 17)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.parts.energy_learning import uniform_images
from methods.parts.langevin import State, frozen, langevin
from methods.parts.latents import Expert


class CooperativeChains:
    """The data chain on the energy and the latent chain on the generator's posterior.

    For a class that also has the members of `Cooperative`, which holds networks and densities.
    """

    def first_images(self, latent: State) -> State:
        """Start of the data chain: X^ = G(z), or noise that has nothing to do with z."""
        if self.data_start == "noise":
            n = len(next(iter(latent.values())))
            return uniform_images(self.spec, n, self.device) | self.texts.noise(n, self.spec)
        return self.texts.state(self.generate(latent))

    def first_latents(self, experts: Mapping[str, Expert], chosen: Tensor | None = None) -> State:
        """Start of the latent chain: a draw of the inference model, or of the prior in its place."""
        drawn = self.posterior_draw(experts, chosen)
        if self.latent_start == "prior":
            return {name: self.prior_sample(name, *block.shape) for name, block in drawn.items()}
        return drawn

    def training_start(
        self, experts: Mapping[str, Expert], chosen: Tensor | None = None
    ) -> tuple[State, Mapping[str, Tensor]]:
        """Start of the latent chain in training, and which private latents `[B]` are unobserved (none)."""
        return self.first_latents(experts, chosen), {}

    def revise_latent(
        self,
        start: State,
        x: Batch,
        steps: int | None = None,
        record=None,
        unobserved: Mapping[str, Tensor] | None = None,
    ) -> tuple[State, Tensor]:
        """T Langevin steps on p(z, w | x_S), S the modalities in `x` (P1 Eqn 8 and 17).

        Rows of a block in `unobserved` `[B]` follow their prior alone; z has to explain those pictures.
        Returns the revised latents and the energies `[T, B]` along the chain.
        """

        def energy(latent: State) -> Tensor:
            seen = dict(latent)
            for name, rows in (unobserved or {}).items():
                seen[name] = torch.where(rows.unsqueeze(1), latent[name].detach(), latent[name])
            return -self.log_prior(latent) - self.log_likelihood(x, self.generate(seen, list(x)))

        with frozen(self.generators):
            return langevin(
                start,
                energy,
                self.latent_steps if steps is None else steps,
                self.latent_step_size,
                self.latent_noise,
                self.latent_max_drift or None,
                record,
                self.apart,
            )

    def revise_data(
        self, start: State, held: Mapping[str, Tensor] | None = None, steps: int | None = None, record=None
    ) -> tuple[State, Tensor]:
        """K Langevin steps on the energy (P1 Eqn 3); modalities in `held` are observed and stay fixed.

        Returns the revised modalities of `start` and the energies `[K, B]` along the chain. Text that the
        chain does not move is returned as it was.
        """
        moving = {name: start[name] for name in self.texts.moving(start)}
        still = {name: state.detach() for name, state in start.items() if name not in moving}
        if not moving:
            return still, torch.zeros(0, len(next(iter(still.values()))), device=self.device)
        fixed = self.texts.embed({**still, **(held or {})})
        whole = None
        if record is not None:

            def whole(step: int, x: State, energy: Tensor, drift: State) -> None:
                record(step, {**still, **x}, energy, drift)

        with frozen(self.energy):
            revised, energies = langevin(
                moving,
                lambda x: self.energy({**self.texts.embed(x), **fixed}),
                self.data_steps if steps is None else steps,
                self.data_step_size,
                self.data_noise,
                record=whole,
            )
        return {**still, **revised}, energies
