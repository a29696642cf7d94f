"""Diff-CMVAE: a CMVAE whose pictures a second-stage diffusion model refines."""
# Over 120 lines: the keywords of two models.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec, UserError
from methods.base import Loss, Method, ParamGroup, Progress, Stage, Task, check_sampler
from methods.cmvae import CMVAE
from methods.parts.diffusion import check_steps, denoise, from_velocity, noise_regression
from methods.parts.langevin import frozen
from methods.parts.latents import Family
from methods.parts.likelihoods import ImageLikelihood
from methods.parts.networks.build import Network
from methods.parts.networks.unet import RefinerUNet


class DiffCMVAE(Method):
    """Diffusion CMVAE; Palumbo et al. 2024 after DiffuseVAE (form 1) of Pandey et al. 2022, METHODS.md 2.10.

    Stage `cmvae` trains the CMVAE and is over; stage `diffusion` descends, for a picture x_n in [-1, 1],

        E |eps - eps_theta(sqrt(abar_t) x_n + sqrt(1 - abar_t) eps, t; r_n)|^2

    over t, eps and r_n, the frozen CMVAE's picture n from z ~ q_m(z | x_m) of a random m: with w_n ~ q_n if
    m = n (self-reconstruction), else w_n ~ p(w_n) (cross). Every example has one random target n a step.
    Sampler `ancestral` is the CMVAE's; `diffusion` denoises from N(0, I) beside the CMVAE's picture r_n.
    Pictures of one shape share a U-Net that is told n; text is not refined.

    Hyper-parameters: those of CMVAE (2.9), and, all section 2.10,
        diffusion_share: of the steps, for the second stage.   diffusion_steps: of the sampler.
        diffusion_width, diffusion_blocks, diffusion_dropout: U-Net, base width, blocks a level, dropout.
        diffusion_output: what the U-Net gives, noise, or velocity around the draft (parts/diffusion.py; our
            choice). The loss is the same.
        lr_diffusion, clip_diffusion: Adam, largest gradient norm (0: none).
    """

    citation = CMVAE.citation
    latents = "shared+private"
    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {
        "diffusion": ("joint", "cross"),
        "ancestral": ("joint", "cross"),
    }
    choices = {**CMVAE.choices, "diffusion_output": ("noise", "velocity")}
    small: ClassVar[Mapping[str, int]] = {"diffusion_blocks": 1}

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 32,
        private: int = 32,
        clusters: int = 40,
        spread: float = 1.0,
        samples: int = 1,
        estimator: Literal["iwae", "dreg", "dreg_compat"] = "iwae",
        beta: float = 2.5,
        family: Family = "laplace",
        network: Network = "resnet",
        width: int = 64,
        likelihood: ImageLikelihood = "laplace",
        likelihood_scale: float = 0.75,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        lr: float = 1e-3,
        amsgrad: bool = True,
        clip: float = 0.0,
        diffusion_share: float = 0.5,
        diffusion_steps: int = 250,
        diffusion_width: int = 80,
        diffusion_blocks: int = 2,
        diffusion_dropout: float = 0.3,
        diffusion_output: Literal["noise", "velocity"] = "noise",
        lr_diffusion: float = 2e-4,
        clip_diffusion: float = 1.0,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "spec", "__class__")}
        super().__init__(spec)
        if not spec.images:
            raise UserError("diff_cmvae refines pictures and there are none in this data; use cmvae")
        if not 0 < diffusion_share < 1:
            raise UserError(f"diffusion_share={diffusion_share} is impossible; give a share within (0, 1)")
        own = [k for k in settings if "diffusion" in k]
        self.cmvae = CMVAE(spec, **{k: v for k, v in settings.items() if k not in own})
        self.share, self.steps, self.output = diffusion_share, check_steps(diffusion_steps), diffusion_output
        self.lr, self.clip = lr_diffusion, clip_diffusion
        kinds: dict[tuple[int, ...], list[str]] = {}
        for m in spec.images:
            kinds.setdefault(m.shape, []).append(m.name)
        self.kinds = {"x".join(map(str, shape)): names for shape, names in kinds.items()}
        self.unets = nn.ModuleDict(
            {key: RefinerUNet(shape, len(kinds[shape]), diffusion_width, diffusion_blocks, diffusion_dropout)
             for key, shape in zip(self.kinds, kinds, strict=True)}
        )  # fmt: skip

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("cmvae", tuple(self.cmvae.param_groups()), 1 - self.share),
            Stage("diffusion", ("diffusion",), self.share),
        )

    def param_groups(self) -> dict[str, ParamGroup]:
        diffusion = ParamGroup(list(self.unets.parameters()), lr=self.lr, clip=self.clip or None)
        return self.cmvae.param_groups() | {"diffusion": diffusion}

    def forward(self, x: Batch, progress: Progress) -> Loss:
        if progress.stage == "cmvae":
            return self.cmvae(x, progress)
        drafts, losses = self.drafts(x), {}
        for key, names in self.kinds.items():
            kind = torch.randint(len(names), (len(x[names[0]]),), device=self.device)
            rows = torch.arange(len(kind), device=self.device)
            target, draft = (torch.stack([b[n] for n in names])[kind, rows] for b in (x, drafts))
            noise = self.noise(key, draft, kind)
            losses[f"noise_{key}"] = noise_regression(noise, 2 * target - 1).mean()
        return Loss(torch.stack(list(losses.values())).sum(), losses)

    @torch.no_grad()
    def drafts(self, x: Batch) -> Batch:
        """The CMVAE's picture of every image modality, `[B, *shape]`, from one random expert an example."""
        with frozen(self.cmvae):
            experts = self.cmvae.experts(x)
            every = torch.stack([e.z.rsample() for e in experts.values()])  # [M, B, D]
            source = torch.randint(len(every), (every.shape[1],), device=self.device)
            latent = {"z": every[source, torch.arange(len(source), device=self.device)]}
            for i, (name, expert) in enumerate(experts.items()):
                own = (source == i).unsqueeze(1)
                latent[f"w.{name}"] = torch.where(own, expert.w.rsample(), self.cmvae.draw_private(len(own)))
            return self.cmvae.decode(latent, [m.name for m in self.spec.images])

    def noise(self, key: str, draft: Tensor, kind: Tensor):  # noqa: ANN201
        """eps_theta(. , t; r, n) of the U-Net `key` for drafts [0, 1] and kinds `[B]`."""
        r = (2 * draft - 1).clamp(-1, 1)
        unet = lambda x, t: self.unets[key](x, t, r, kind)  # noqa: E731
        return from_velocity(unet, r) if self.output == "velocity" else unet

    def refine(self, drafts: Batch, steps: int | None) -> Batch:
        """Every picture denoised beside its draft; text as it is."""
        steps, out = self.steps if steps is None else steps, dict(drafts)
        for key, names in self.kinds.items():
            for i, name in enumerate(names):
                if name in drafts and steps:
                    draft = drafts[name]
                    noise = self.noise(key, draft, torch.full((len(draft),), i, device=draft.device))
                    out[name] = (denoise(noise, torch.randn_like(draft), steps) + 1) / 2
        return out

    def encode(self, given: Batch) -> dict[str, Tensor]:
        return self.cmvae.encode(given)

    def sample_prior(self, n: int) -> dict[str, Tensor]:
        return self.cmvae.sample_prior(n)

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        return self.cmvae.decode(latent, targets)

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        drafts = self.cmvae.joint_generate(n)
        return self.refine(drafts, steps) if check_sampler(self, sampler, "joint") == "diffusion" else drafts

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        drafts = self.cmvae.cross_generate(given, targets)
        return self.refine(drafts, steps) if check_sampler(self, sampler, "cross") == "diffusion" else drafts

    def assign(self, x: Batch, held_out: Batch) -> Tensor | None:
        return self.cmvae.assign(x, held_out)

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        """The CMVAE's decoder, and one evaluation of the U-Net a denoising step."""
        if check_sampler(self, sampler, task) == "ancestral":
            return 1
        return 1 + (self.steps if steps is None else steps)

    @classmethod
    def unsupported(cls, spec: DataSpec, task: Task) -> str | None:
        if not spec.images:
            return "it refines pictures and there are none in this data"
        return super().unsupported(spec, task)
