"""The energy-based prior on the shared latent, its chain and its training schedule (METHODS.md 2.7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from datasets.spec import UserError
from methods.base import Chain, Diverged, ParamGroup, Progress, Stage
from methods.parts.langevin import Record, State, frozen, langevin
from methods.parts.latents import Family
from methods.parts.networks.common import at_least_float32
from methods.parts.priors import Prior
from methods.parts.recording import Recorder
from methods.parts.vae import MultimodalVAE

LOOK_EVERY = 25
"""Training steps between two looks at the energy gap; each look waits for the device."""

GAP_LIMIT = 1e4


class LatentEnergy(nn.Module):
    """U_alpha(z), low = likely: MLP latent -> width -> width -> 1 with GELU; `[..., latent]` -> `[...]`."""

    def __init__(self, latent: int, width: int = 200) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return at_least_float32(self.layers(z).squeeze(-1))


class EnergyPrior(nn.Module):
    """p_alpha(z) = exp(-U_alpha(z)) p_0(z) / Z(alpha)  (Pang et al. 2020; MVEBM).

    Z(alpha) is a constant for encoders and decoders, and cancels from the learning gradient of U.
    `steps` and `step_size` are those of the Langevin chain that samples it.
    """

    def __init__(self, latent: int, family: Family, width: int, steps: int, step_size: float) -> None:
        super().__init__()
        if steps < 0 or step_size <= 0:
            raise UserError(
                f"a prior chain of {steps} steps of {step_size} is impossible; give prior_steps >= 0 and "
                "prior_step_size > 0"
            )
        self.base = Prior(latent, family)
        self.energy = LatentEnergy(latent, width)
        self.steps, self.step_size = steps, step_size

    def log_prob(self, z: Tensor) -> Tensor:
        """log p_0(z) - U(z), that is log p_alpha(z) + log Z, `[...]`, with U as a fixed critic.

        The parameters of U are constants here (METHODS.md trap 28); the gradient reaches z alone.
        """
        constants = {name: p.detach() for name, p in self.energy.named_parameters()}
        return self.base.log_prob(z) - functional_call(self.energy, constants, (z,))

    def contrast(self, positive: Tensor, negative: Tensor, progress: Progress) -> Tensor:
        """Loss of U: mean U(posterior samples) - mean U(prior samples), the samples being constants.

        Descent lowers the energy where the posterior is and raises it where the chain goes, which is the
        gradient of E_q[log p_alpha]; the slides print the opposite sign for the same convention.
        Raises Diverged when the gap runs away.
        """
        gap = self.energy(positive.detach()).mean() - self.energy(negative.detach()).mean()
        if self.training and progress.step % LOOK_EVERY == 0 and not gap.detach().abs() < GAP_LIMIT:
            raise Diverged(
                f"energy gap {gap.item():.3g} between posterior and prior samples exceeds {GAP_LIMIT:.0e}; "
                "lower lr_energy or prior_step_size"
            )
        return gap

    def chain_steps(self, steps: int | None = None) -> int:
        """The number of steps to run: the given one, or the prior's own."""
        return self.steps if steps is None else steps

    def sample(self, n: int, steps: int | None = None, record: Record | None = None) -> Tensor:
        """z_0 ~ p_0, then z <- z - (s^2/2) grad[U(z) - log p_0(z)] + s eps; returns `[n, latent]`.

        For a Laplace p_0 the gradient is the subgradient, 0 at 0.
        """

        def total(state: State) -> Tensor:
            return self.energy(state["z"]) - self.base.log_prob(state["z"])

        with frozen(self.energy):
            start = {"z": self.base.rsample(n)}
            s = self.step_size
            state, _ = langevin(start, total, self.chain_steps(steps), s, noise=s, record=record)
        return state["z"]


def prior_chain(method: MultimodalVAE, prior: EnergyPrior, n: int, steps: int | None, every: int) -> Chain:
    """The prior chain decoded along the way; private latents stay fixed so that only z moves.

    `values` are U(z) - log p_0(z), the energy that the chain descends.
    """
    length = prior.chain_steps(steps)
    names = method.spec.names
    private = {f"w.{name}": method.draw_private(n) for name in names if method.private}
    recorder = Recorder(
        length,
        every,
        lambda state: method.decode({**state, **private}, names),
        step_size=prior.step_size,
        noise=prior.step_size,
    )
    prior.sample(n, length, recorder)
    return recorder.chain("prior", "energy")


@dataclass(frozen=True)
class EnergySchedule:
    """When and how U trains: `start` is the share of the steps before it enters, the rest is Adam's."""

    start: float
    lr: float
    beta1: float
    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise UserError(f"energy_start={self.start} is impossible; give a share of the steps in [0, 1)")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """A plain VAE stage `warmup`, left out if `start` is 0, then `train` with the energy."""
        train = Stage("train", ("generator", "inference", "energy"), 1 - self.start)
        return (Stage("warmup", train.groups[:2], self.start), train) if self.start else (train,)

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The bound trains encoders and decoders, the contrast U, and neither the other's networks."""
        bound = {"vae": ("generator", "inference")}
        return {s.name: bound | ({"energy": ("energy",)} if s.name == "train" else {}) for s in self.stages}

    def warming(self, progress: Progress) -> bool:
        """Whether U is still left out."""
        return progress.stage == "warmup"

    def group(self, energy: nn.Module) -> ParamGroup:
        """Adam's setting for U."""
        return ParamGroup(list(energy.parameters()), lr=self.lr, betas=(self.beta1, 0.999), decay=self.decay)
