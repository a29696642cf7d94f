"""Log-likelihoods of images and captions, summed over the entries of one example (METHODS.md 1.3).

Sums, never means: weights, beta and learning rates of all papers presuppose it. Everything is computed
in float32 or better, whatever the networks ran in.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from datasets.spec import Modality, UserError
from methods.parts.networks.common import at_least_float32

ImageLikelihood = Literal["laplace", "gaussian"]


def _event_sum(x: Tensor, event: int) -> Tensor:
    return x.flatten(-event).sum(-1)


def laplace_log_prob(x: Tensor, location: Tensor, scale: float, event: int = 3) -> Tensor:
    """log Laplace(x; location, b) = -sum |x - location| / b - D log 2b over the last `event` dimensions.

    x `[B, *shape]` broadcasts against location `[..., B, *shape]`; returns `[..., B]`.
    """
    error = (at_least_float32(location) - x).abs()
    size = math.prod(error.shape[-event:])
    return -_event_sum(error, event) / scale - size * math.log(2 * scale)


def gaussian_log_prob(x: Tensor, location: Tensor, scale: float, event: int = 3) -> Tensor:
    """log N(x; location, s^2) = -sum (x - location)^2 / (2 s^2) - D log(s sqrt(2 pi)); shapes as above."""
    error = (at_least_float32(location) - x).square()
    size = math.prod(error.shape[-event:])
    return -_event_sum(error, event) / (2 * scale**2) - size * (math.log(scale) + 0.5 * math.log(2 * math.pi))


def categorical_log_prob(tokens: Tensor, logits: Tensor) -> Tensor:
    """sum_l log softmax(logits_l)[token_l] for tokens `[B, L]`, logits `[..., B, L, V]`; returns `[..., B]`.

    Every position counts, padding and unknown words too, as in MMVAE+ (METHODS.md trap 23).
    """
    logits = at_least_float32(logits)
    flat = F.cross_entropy(
        logits.flatten(0, -2), tokens.expand(logits.shape[:-1]).flatten(), reduction="none"
    )
    return -flat.view(logits.shape[:-1]).sum(-1)


class Likelihood:
    """lambda_m log p_m(x_m | output) by kind of modality.

    kind `laplace` or `gaussian` and `scale` are those of images; `image_weight` and `text_weight` are
    the lambda_m. Raises UserError for an unknown kind or a scale that is not positive.
    """

    def __init__(self, kind: str, scale: float, image_weight: float = 1.0, text_weight: float = 1.0) -> None:
        if kind not in ("laplace", "gaussian"):
            raise UserError(f"likelihood '{kind}' is unknown; choose 'laplace' or 'gaussian'")
        if scale <= 0:
            raise UserError(f"likelihood_scale={scale} is impossible; give a positive scale")
        self.kind, self.scale = kind, scale
        self.image_weight, self.text_weight = image_weight, text_weight

    def __call__(self, modality: Modality, x: Tensor, output: Tensor) -> Tensor:
        """x `[B, *shape]`, decoder output `[..., B, *shape]` (text: logits); returns `[..., B]`."""
        if modality.kind == "text":
            return self.text_weight * categorical_log_prob(x, output)
        density = laplace_log_prob if self.kind == "laplace" else gaussian_log_prob
        return self.image_weight * density(x, output, self.scale)
