"""What the VAE baselines share: encoders, decoders, likelihoods, sampling. Bounds are in the method files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec, Modality, UserError
from methods.base import Method, ParamGroup, check_sampler
from methods.parts.chunks import chunk_size, couples_rows, in_chunks, row_bytes
from methods.parts.latents import Diagonal, Expert, ExpertEncoder, check_family
from methods.parts.likelihoods import Likelihood
from methods.parts.networks.build import build_decoder
from methods.parts.posteriors import mixture_mean, mixture_rsample


@dataclass(frozen=True)
class Adam:
    """One optimiser setting: rate, AMSGrad, largest gradient norm (0: no clipping)."""

    lr: float
    amsgrad: bool = False
    clip: float = 0.0

    def group(self, parameters: Iterable[nn.Parameter]) -> ParamGroup:
        """These parameters under this setting."""
        return ParamGroup(list(parameters), lr=self.lr, amsgrad=self.amsgrad, clip=self.clip or None)


class RowBytes(NamedTuple):
    """Bytes that one row of each network of a modality keeps for the backward pass."""

    encoder: int
    decoder: int


class MultimodalVAE(Method):
    """p(X, z, W) = p(z) prod_m p(w_m) p_m(x_m | z, w_m) with experts q_m; W absent if `private` = 0.

    A subclass gives `forward` and the priors, `draw_prior(n)` and, with private latents,
    `draw_private(n)`. `encode` and `cross_generate` serve mixtures of experts; a method with another
    posterior overrides `posterior_mean` and `posterior_sample`. Likelihoods and samples are in
    [0, 1], the networks work in [-1, 1] with linear outputs (see `output`).

    Hyper-parameters, common to all subclasses (METHODS.md 1.3 to 1.5):
        latent, private: sizes of z and of each w_m.        family: of prior and experts, section 1.4.
        network, width: backbone, section 1.5.              likelihood, likelihood_scale: of images, 1.3.
        image_weight, text_weight: lambda_m of each kind.   lr, amsgrad: Adam.
        clip: largest gradient norm per group, 0 for none.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "family": ("laplace", "normal", "gaussian"),
        "network": ("cnn", "resnet"),
        "likelihood": ("laplace", "gaussian"),
    }

    def __init__(
        self,
        spec: DataSpec,
        likelihood: Likelihood,
        adam: Adam,
        *,
        latent: int,
        family: str,
        network: str,
        width: int,
        private: int = 0,
    ) -> None:
        super().__init__(spec)
        if latent < 1 or private < 0:
            raise UserError(
                f"latent={latent}, private={private} is impossible; give at least 1 and 0 dimensions"
            )
        self.latent, self.private, self.family = latent, private, check_family(family)
        self.likelihood, self.adam = likelihood, adam
        self.encoders = nn.ModuleDict(
            {m.name: ExpertEncoder(m, latent, private, self.family, network, width) for m in spec}
        )
        self.decoders = nn.ModuleDict(
            {m.name: build_decoder(m, private + latent, network, width, private=private) for m in spec}
        )
        self._kept = {m.name: self._row_bytes(m) for m in spec}

    # -- pieces of the bounds

    def experts(self, x: Batch) -> dict[str, Expert]:
        """The expert of every modality in `x`, in the order of the spec; each encoder runs once.

        Beyond its share of `memory` in chunks that are computed twice, see `log_likelihoods`.
        """
        if not x:
            raise ValueError("no modality is given; a posterior needs at least one")
        return {name: self._expert(name, x[name]) for name in self.spec.names if name in x}

    def _expert(self, name: str, x: Tensor) -> Expert:
        encoder, x = self.encoders[name], self._centred(name, x)
        size = self._rows_at_once(len(x), self._kept[name].encoder)
        return encoder(x) if size == len(x) else Expert.join(in_chunks(encoder, size, x))

    def _centred(self, name: str, x: Tensor) -> Tensor:
        """Images [0, 1] -> [-1, 1] for the encoders; text as it is."""
        return 2 * x - 1 if self.spec[name].kind == "image" else x

    def output(self, name: str, z: Tensor, w: Mapping[str, Tensor] | None) -> Tensor:
        """Location of p_m in [0, 1] (linear, unbounded) or logits; decoders work in [-1, 1] as `ours` does.

        An affine map that the last layer could absorb: the same model, but started at mid-grey instead of
        black, without which the few steps of `quick` go into the mean brightness.
        """
        return self._location(name, self.joined(name, z, w))

    def _location(self, name: str, latent: Tensor) -> Tensor:
        raw = self.decoders[name](latent)
        return (raw + 1) / 2 if self.spec[name].kind == "image" else raw

    def log_likelihoods(
        self, x: Batch, z: Tensor, w: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """lambda_n log p_n(x_n | z, w_n) `[..., B]` of every modality in `x`; z and w_n are `[..., B, D]`.

        One decoder call per modality, whatever the leading dimensions, unless that keeps more than its
        share of `memory` for the backward pass: then chunks of that share, each computed twice.
        """
        return {
            m.name: self._log_likelihood(m, x[m.name], self.joined(m.name, z, w))
            for m in self.spec
            if m.name in x
        }

    def _log_likelihood(self, modality: Modality, x: Tensor, latent: Tensor) -> Tensor:
        leading = latent.shape[:-1]
        size = self._rows_at_once(leading.numel(), self._kept[modality.name].decoder)
        if size == leading.numel():
            return self.likelihood(modality, x, self._location(modality.name, latent))

        def part(latent: Tensor, example: Tensor) -> Tensor:
            return self.likelihood(modality, x[example], self._location(modality.name, latent))

        example = torch.arange(len(x), device=x.device).repeat(leading[:-1].numel())
        return torch.cat(in_chunks(part, size, latent.flatten(0, -2), example)).view(leading)

    def _rows_at_once(self, rows: int, each: int) -> int:
        """Rows that one network may take at once: all, or what an equal share of `memory` allows."""
        share = self.memory * 1e9 / (2 * len(self.spec))
        return chunk_size(rows, each, share) if torch.is_grad_enabled() else rows

    def _row_bytes(self, modality: Modality) -> RowBytes:
        """What an encoding and a decoding with its likelihood keep; 0 where rows cannot be separated."""
        name, kind = modality.name, torch.get_default_dtype() if modality.kind == "image" else torch.int64
        x, latent = torch.zeros(1, *modality.shape, dtype=kind), torch.zeros(1, self.private + self.latent)
        encoder, decoder = self.encoders[name], self.decoders[name]

        def score(x: Tensor, latent: Tensor) -> Tensor:
            return self.likelihood(modality, x, self._location(name, latent))

        return RowBytes(
            0 if couples_rows(encoder) else row_bytes(encoder, x),
            0 if couples_rows(decoder) else row_bytes(score, x, latent),
        )

    @staticmethod
    def joined(name: str, z: Tensor, w: Mapping[str, Tensor] | None) -> Tensor:
        """Decoder input [w_n, z], in this order (METHODS.md 1.5)."""
        return z if w is None else torch.cat([w[name], z], -1)

    # -- the contract

    def param_groups(self) -> dict[str, ParamGroup]:
        groups = {"generator": self.decoders.parameters(), "inference": self.encoders.parameters()}
        return {name: self.adam.group(parameters) for name, parameters in groups.items()}

    def draw_prior(self, n: int, steps: int | None = None) -> Tensor:
        """`n` draws `[n, latent]` of p(z); `steps` matters to priors that are sampled by a chain."""
        raise NotImplementedError

    def draw_private(self, n: int) -> Tensor:
        """`n` draws `[n, private]` of p(w_m)."""
        raise NotImplementedError

    def posterior_mean(self, experts: Mapping[str, Diagonal]) -> Tensor:
        """Mean of q(z | X_S) `[B, latent]` from the experts of S."""
        return mixture_mean(list(experts.values()))

    def posterior_sample(self, experts: Mapping[str, Diagonal]) -> Tensor:
        """One draw of q(z | X_S) `[B, latent]` from the experts of S."""
        return mixture_rsample(list(experts.values()))

    def encode(self, given: Batch) -> dict[str, Tensor]:
        experts = self.experts(given)
        private = {f"w.{name}": e.w.location for name, e in experts.items() if e.w is not None}
        return {"z": self.posterior_mean({name: e.z for name, e in experts.items()}), **private}

    def sample_prior(self, n: int, steps: int | None = None) -> dict[str, Tensor]:
        private = {f"w.{name}": self.draw_private(n) for name in self.spec.names if self.private}
        return {"z": self.draw_prior(n, steps), **private}

    def decode(self, latent: Mapping[str, Tensor], targets: Sequence[str]) -> Batch:
        z, out = latent["z"], {}
        for name in targets:
            w = None
            if self.private:
                own = latent.get(f"w.{name}")
                # Every modality draws its own: a common w would tie the styles together.
                w = {name: self.draw_private(len(z)) if own is None else own}
            output = self.output(name, z, w)
            out[name] = output if self.spec[name].kind == "image" else output.argmax(-1)
        return out

    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        check_sampler(self, sampler, "joint")
        return self.decode(self.sample_prior(n, steps), self.spec.names)

    def cross_generate(
        self, given: Batch, targets: Sequence[str], sampler: str | None = None, steps: int | None = None
    ) -> Batch:
        """Sample q(z | X_S), decode the locations; a target that is given is reconstructed with its own w."""
        check_sampler(self, sampler, "cross")
        experts = self.experts(given)
        z = self.posterior_sample({name: e.z for name, e in experts.items()})
        private = {
            f"w.{name}": e.w.rsample() for name, e in experts.items() if e.w is not None and name in targets
        }
        return self.decode({"z": z, **private}, targets)
