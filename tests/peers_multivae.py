"""The other side: MultiVae's losses from our modules, our weights, our noise and our batch.

    pip install '.[peers]'
    python tests/peers_multivae.py      writes the figures of both sides to tests/peers.json

What the library (1.0.3) does otherwise than the papers or than we, found while writing this:

* MMVAE, MMVAE+, CMVAE return the sum over the batch, not the mean: `per_example`.
* MMVAE has a `beta` and ignores it. MMVAE+ and CMVAE use theirs. Its DReG, like that of MMVAE+ and CMVAE,
  does detach the posterior densities, unlike the released MMVAE+ code; so it is our `dreg`.
* MMVAE+ and CMVAE hand the latents to the decoders as [z, w], the published code and we as [w, z].
* CMVAE writes the sum over clusters out with p(c | z) + 1e-20; that sum is log p(z).
* MoPoE and MVTCAE add 1e-8 to each variance of a product, MVAE does not: losses of the two agree to 1e-6,
  and to rounding once that is taken out.
* MoPoE gives component s of the mixture to the s-th part of the batch; for an incomplete batch it draws.
* MVAE anneals over 10 epochs unless told otherwise, and starts with a KL of weight 0. With at most two
  modalities it drops a wish for random subsets silently. Its logged `recon` of a subset includes the KL.
* Scales of `laplace_with_softmax` and `normal_with_softplus` have a floor of 1e-6, as ours; published: 1e-20.
* MVTCAE defaults to alpha = 0.1 (paper, PolyMNIST: 5/6).
* Sampling, not compared here: with several given modalities MMVAE, MMVAE+ and CMVAE take one expert for the
  whole batch from NumPy's generator. MoPoE's mean code of the full set is the mean of all subsets' means,
  ours that of their product.
* mmJSD is not in the library. CRMVAE is not in the suite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from multivae import models
from multivae.data import MultimodalBaseDataset
from multivae.models.mvae import mvae_model
from peers_cases import (
    ANNEALED,
    CASES,
    IMAGE_WEIGHT,
    PAIRS_DRAWN,
    SCALE,
    SPEC,
    TEXT_WEIGHT,
    Case,
    Noise,
    Queue,
    available,
    batch,
    gradient_norm,
    instance,
    our_loss,
)
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from methods.base import Method

FIGURES = Path(__file__).parent / "peers.json"


class Encoder(BaseEncoder):
    """Our encoder of one modality in the library's form."""

    def __init__(self, method: Method, name: str) -> None:
        super().__init__()
        self.name, self.network, self.private = name, method.encoders[name].towers[0], method.private
        self.latent_dim, self.style_dim = method.latent, method.private
        self.centred = method._centred

    def forward(self, x: Any) -> ModelOutput:
        x = x["tokens"] if isinstance(x, dict) else x
        location, raw = self.network(self.centred(self.name, x))
        out = ModelOutput(embedding=location[:, self.private :], log_covariance=raw[:, self.private :])
        if self.private:
            out["style_embedding"] = location[:, : self.private]
            out["style_log_covariance"] = raw[:, : self.private]
        return out


class Decoder(BaseDecoder):
    """Our decoder of one modality; it takes [w, z], the library gives [z, w]."""

    def __init__(self, method: Method, name: str) -> None:
        super().__init__()
        self.name, self.network, self.kind = name, method.decoders[name], method.spec[name].kind
        self.size = method.latent

    def forward(self, latent: Tensor) -> ModelOutput:
        z, w = latent[..., : self.size], latent[..., self.size :]
        raw = self.network(torch.cat([w, z], -1))
        return ModelOutput(reconstruction=(raw + 1) / 2 if self.kind == "image" else raw)


@contextmanager
def float64() -> Iterator[None]:
    """The library makes some tensors in the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def prepared(draws: Sequence[Tensor]) -> Iterator[None]:
    """Inside, torch's normal and Laplace distributions take this noise, in order."""
    queue = Queue(draws)

    def rsample(self: Any, sample_shape: Sequence[int] = ()) -> Tensor:
        scale = self.scale
        return self.loc + scale * queue.next(self._extended_shape(torch.Size(sample_shape)))

    with (
        patch.object(torch.distributions.Normal, "rsample", rsample),
        patch.object(torch.distributions.Laplace, "rsample", rsample),
        patch.object(mvae_model, "choice", lambda *_, size, replace: PAIRS_DRAWN[:size]),
    ):
        yield
    assert not queue.left, f"{len(queue.left)} prepared draws were not asked for"


def peer_of(case: Case, method: Method, **changes: Any) -> nn.Module:
    """The library's model around the modules of `method`; learned priors are copied into it."""
    spec = method.spec
    config = {
        "n_modalities": len(spec),
        "latent_dim": method.latent,
        "uses_likelihood_rescaling": True,
        "rescale_factors": {m.name: IMAGE_WEIGHT if m.kind == "image" else TEXT_WEIGHT for m in spec},
        "decoders_dist": {m.name: "laplace" if m.kind == "image" else "categorical" for m in spec},
        "decoder_dist_params": {m.name: {"scale": SCALE} for m in spec if m.kind == "image"},
        **({"modalities_specific_dim": method.private} if method.private else {}),
        **case.config,
        **changes,
    }
    model = getattr(models, case.peer)(
        getattr(models, f"{case.peer}Config")(**config),
        {name: Encoder(method, name) for name in spec.names},
        {name: Decoder(method, name) for name in spec.names},
    )
    with torch.no_grad():
        for ours, theirs in shared_priors(method, model):
            for own, copy in zip(ours.view(len(theirs), -1), theirs, strict=True):
                copy.copy_(own.view_as(copy))
    return model


def shared_priors(method: Method, model: nn.Module) -> list[tuple[Tensor, list[Tensor]]]:
    """Learned parameters of priors: ours, and the library's, which may hold ours in several pieces."""
    if hasattr(model, "prior_log_var"):
        return [(method.prior.raw, [model.prior_log_var])]
    own = getattr(model, "logvars_priors", getattr(model, "r_logvars_priors", {}))
    pairs = [(method.auxiliaries[n].raw, [own[n]]) for n in method.spec.names if n in own]
    if hasattr(model, "mean_clusters"):
        pairs.append((method.prior.centres, list(model.mean_clusters)))
        pairs.append((method.prior.logits, [model._pc_params]))
    return pairs


def peer_loss(case: Case, model: nn.Module) -> Tensor:
    """The library's training loss on the batch, as it returns it, under the case's noise."""
    x = batch()
    data = {n: t if SPEC[n].kind == "image" else {"tokens": t} for n, t in x.items()}
    with prepared(Noise(case).theirs):
        return model.train()(MultimodalBaseDataset(data), **ANNEALED).loss


def figures(name: str) -> dict[str, float]:
    """Losses and gradient norms of both sides, ours in the library's units beside."""
    case = CASES[name]
    with float64():
        method = instance(case)
        model = peer_of(case, method)
        ours, theirs = our_loss(case, method), peer_loss(case, model)
        networks = [*method.encoders.parameters(), *method.decoders.parameters()]
        return {
            "ours": ours.item(),
            "ours_gradient": gradient_norm(ours, networks),
            "multivae": theirs.item(),
            "multivae_gradient": gradient_norm(theirs, networks),
        }


def main() -> None:
    record = {
        "command": "python tests/peers_multivae.py",
        "versions": {name: version(name) for name in ("multivae", "pythae", "torch")},
        "batch": len(batch()["photo"]),
        "cases": {name: figures(name) for name, case in CASES.items() if available(case)},
    }
    FIGURES.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, case in record["cases"].items():
        print(name, case)


if __name__ == "__main__":
    main()
