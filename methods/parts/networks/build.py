"""Encoders and decoders by modality and backbone name (METHODS.md 1.5).

`cnn` is Net-A (published at width 32), `resnet` Net-B, from 64 pixels on Net-C (width 64). Text is Net-D in
both; only `resnet`, the published setting, keeps its BatchNorm and gives private latents their own tower.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from datasets.spec import Modality, UserError
from methods.parts.networks.cnn import CnnDecoder, CnnEncoder
from methods.parts.networks.resnet import ResnetDecoder, ResnetEncoder
from methods.parts.networks.text import TextDecoder, TextEncoder
from methods.parts.networks.text_towers import TextBranches, TextTowers

Network = Literal["cnn", "resnet"]


def _check(modality: Modality, latent: int, network: str, width: int) -> None:
    if network not in ("cnn", "resnet"):
        raise UserError(f"network '{network}' is unknown; choose 'cnn' or 'resnet'")
    if latent < 1:
        raise UserError(f"a latent of {latent} dimensions is impossible; give at least 1")
    if width < 1:
        raise UserError(f"a network of width {width} is impossible; give at least 1")
    if modality.kind == "image" and min(modality.shape[1:]) < 8:
        raise UserError(
            f"image modality '{modality.name}' is {modality.shape[1]}x{modality.shape[2]}, the networks need "
            "sides of at least 8; enlarge the images"
        )


def _text_base(network: str, width: int) -> int:
    """Base width of Net-D (32 as published): width 32 of `cnn` and width 64 of `resnet` both mean 32.

    Kept a multiple of 8, because the embedding (4 times the base) is halved five times.
    """
    base = width if network == "cnn" else width // 2
    return max(8, 8 * round(base / 8))


def build_encoder(
    modality: Modality,
    latent: int,
    network: str = "cnn",
    width: int = 32,
    batch_norm: bool = True,
    private: int = 0,
) -> nn.Module:
    """An encoder `[B, *shape] -> (location [B, latent], raw scale [B, latent])`, float32 outputs.

    `batch_norm` False replaces the BatchNorm of `resnet`'s text network too, for models that run chains.
    `private`: how many of the `latent` dimensions, the first ones, are private; `resnet`'s text network has a
    tower for them.
    Raises UserError for an unknown network or an impossible size. Source: METHODS.md 1.5.
    """
    _check(modality, latent, network, width)
    if modality.kind == "text":
        base = _text_base(network, width)
        published = batch_norm and network == "resnet"
        form = (base, modality.padding, published)
        if private and network == "resnet":
            return TextTowers(modality.shape[0], modality.vocabulary, private, latent - private, *form)
        return TextEncoder(modality.shape[0], modality.vocabulary, latent, *form)
    kind = CnnEncoder if network == "cnn" else ResnetEncoder
    return kind(modality.shape, latent, width)  # type: ignore[arg-type]


def build_decoder(
    modality: Modality,
    latent: int,
    network: str = "cnn",
    width: int = 32,
    batch_norm: bool = True,
    private: int = 0,
) -> nn.Module:
    """A decoder `[..., latent] -> [..., C, H, W]` (linear) or logits `[..., length, vocabulary]`.

    `batch_norm` and `private` as in `build_encoder`.
    Raises UserError for an unknown network or an impossible size. Source: METHODS.md 1.5.
    """
    _check(modality, latent, network, width)
    if modality.kind == "text":
        base = _text_base(network, width)
        published = batch_norm and network == "resnet"
        if private and network == "resnet":
            sizes = (private, latent - private)
            return TextBranches(modality.shape[0], modality.vocabulary, *sizes, base, published)
        return TextDecoder(modality.shape[0], modality.vocabulary, latent, base, published)
    kind = CnnDecoder if network == "cnn" else ResnetDecoder
    return kind(modality.shape, latent, width)  # type: ignore[arg-type]
