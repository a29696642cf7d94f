"""Ablation of `ours`: the energy alone, learned by maximum likelihood with chains that start from noise.

Cui, Lao, Yu, arXiv 2605.00644, section 5.2, Figure 2, right, and Table 9; METHODS 2.16.

Model     p_a(X) = exp(-U_a(X)) / Z                                              (Eqn 1)
Sampling  X_0 ~ U[-1, 1] or N(0, I), every entry by itself; a caption is an array of word embeddings;
          x <- x - (s_x^2/2) dU/dx + n_x eps, all modalities at once, K steps     (Eqn 3)
Loss      E_data[U(x)] - E[U(x_K)], which descends KL(p_data || p_a)             (Eqn 2)

No generator, no inference, no replay buffer; the network U is that of `ours`, the paper runs 30, 60 and 100
steps. Our choice, since the paper names neither: the uniform start, and s_x, n_x and U without spectral norm
of METHODS 2.16's second set. With the values of `ours` a chain from noise stays where it starts.
"""
# Over 120 lines: it shares no class with `ours`, since it has nothing but the energy.

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from datasets.spec import Batch, DataSpec
from methods.base import Chain, Loss, Method, ParamGroup, Progress, Task, check_sampler
from methods.parts.chain_health import CHECK_EVERY, check_chains, displacement
from methods.parts.energy_learning import contrast, to_data, to_model, uniform_images
from methods.parts.langevin import State, frozen, langevin
from methods.parts.networks.energy import HEADS, JointEnergy
from methods.parts.recording import Recorder
from methods.parts.text_state import TextStates

WORD_SIZE = 128
"""Numbers that stand for a word, as in Net-D (METHODS 1.5)."""


class MLEEBM(Method):
    """Hyper-parameters (METHODS 2.14.6, 2.16), named as in `ours`: `start` of the chain; `data_steps` K,
    `data_step_size` s_x, `data_noise` n_x; `energy_width`, `stem_width`, `stem_stride`, `spectral_norm`,
    `energy_penalty` r, `energy_head`; `lr_energy`, `beta1`, `beta2`, `decay` per epoch, `clip` norm;
    `text_scale`, the length of word embeddings, which are drawn once.
    """

    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"
    latents = ""
    samplers: ClassVar[Mapping[str, tuple[Task, ...]]] = {"ebm": ("joint",)}
    chains: ClassVar[tuple[str, ...]] = ("data",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"energy_head": HEADS}
    excused: ClassVar[dict[str, str]] = {
        "every_parameter_is_trained[energy.head.bias]": "cancels in U(x) - U(x-); `energy_penalty` trains it"
    }

    def __init__(
        self,
        spec: DataSpec,
        *,
        start: Literal["uniform", "normal"] = "uniform",
        data_steps: int = 30,
        data_step_size: float = 1.414,
        data_noise: float = 0.01,
        energy_width: int = 128,
        stem_width: int = 16,
        stem_stride: int = 1,
        spectral_norm: bool = False,
        energy_penalty: float = 0.0,
        lr_energy: float = 1e-4,
        beta1: float = 0.0,
        beta2: float = 0.9,
        decay: float = 0.998,
        clip: float = 100.0,
        energy_head: str = "linear",
        text_scale: float = 1.0,
    ) -> None:
        super().__init__(spec)
        if start not in ("uniform", "normal"):
            raise ValueError(f"start '{start}' is none of uniform, normal")
        self.start, self.energy_penalty, self.data_steps = start, energy_penalty, data_steps
        self.data_step_size, self.data_noise = data_step_size, data_noise
        self.adam = {"lr": lr_energy, "betas": (beta1, beta2), "decay": decay, "clip": clip or None}
        words = {m.name: torch.randn(m.vocabulary, WORD_SIZE) for m in spec.texts}
        self.texts = TextStates(words, text_scale, "embedding")
        form = (energy_width, stem_width, stem_stride, spectral_norm, self.texts.sizes, energy_head)
        self.energy = JointEnergy(spec, *form)

    def forward(self, x: Batch, progress: Progress) -> Loss:
        x = self.texts.embed(to_model(x))
        noise = self.noise(len(next(iter(x.values()))))
        negatives = self.revise_data(noise)
        loss, terms = contrast(self.energy, x, negatives, self.energy_penalty)
        terms["moved"] = displacement(noise, negatives)
        if self.training and progress.step % CHECK_EVERY == 0:
            check_chains(terms, sum(m.size for m in self.spec), "noise")
        return Loss.of(terms, energy=loss)

    def noise(self, n: int) -> State:
        """X_0 of every modality: images `[n, C, H, W]` in the units of [-1, 1], states of captions."""
        texts = self.texts.noise(n, self.spec, self.start == "normal")
        if self.start == "uniform":
            return uniform_images(self.spec, n, self.device) | texts
        return {m.name: torch.randn(n, *m.shape, device=self.device) for m in self.spec.images} | texts

    def to_data(self, state: State) -> Batch:
        return to_data(self.texts.read(state))

    def revise_data(self, start: State, steps: int | None = None, record: Recorder | None = None) -> State:
        """The end of K Langevin steps on U."""
        steps, size = self.data_steps if steps is None else steps, self.data_step_size
        with frozen(self.energy):
            return langevin(start, self.energy, steps, size, self.data_noise, record=record)[0]

    def param_groups(self) -> dict[str, ParamGroup]:
        return {"energy": ParamGroup(list(self.energy.parameters()), **self.adam)}

    @property
    def gradients(self) -> dict[str, dict[str, tuple[str, ...]]]:
        return {"train": {"energy": ("energy",)}}

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        check_sampler(self, sampler, "joint")
        return self.to_data(self.revise_data(self.noise(n), steps))

    def chain(self, kind: str, x: Batch | None, n: int, steps: int | None = None, every: int = 2) -> Chain:
        if kind != "data":
            raise ValueError(f"{type(self).__name__} runs a 'data' chain only")
        recorder = Recorder(
            self.data_steps if steps is None else steps,
            every,
            self.to_data,
            step_size=self.data_step_size,
            noise=self.data_noise,
        )
        self.revise_data(self.noise(n), steps, recorder)
        return recorder.chain(kind, "energy")

    def nfe(self, sampler: str | None, task: Task, steps: int | None = None) -> int:
        check_sampler(self, sampler, task)
        return max(1, self.data_steps if steps is None else steps)

    @classmethod
    def unsupported(cls, spec: DataSpec, task: Task) -> str | None:
        latent = task in ("cross", "encode", "interpolate")
        return f"{cls.__name__} has no latents to encode, interpolate or reconstruct with" if latent else None
