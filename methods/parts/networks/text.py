"""Net-D with one tower: a caption as a one-channel picture of word embeddings (METHODS.md 1.5).

For methods with private latents the published network has two, see `text_towers`.

Captions whose length is no multiple of 8 are padded inside the networks and cropped again.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.networks.common import at_least_float32, folded


def norm(batch_norm: bool, channels: int) -> nn.Module:
    """BatchNorm, or without it a normalisation within the example."""
    # BatchNorm is the published layer but couples the examples of a batch (trap 14); the shared
    # backbone normalises within the example instead.
    return nn.BatchNorm2d(channels) if batch_norm else nn.GroupNorm(1, channels)


def down(i: int, o: int, batch_norm: bool, wide: bool = False) -> nn.Sequential:
    """Halve both sides, or with `wide` only the embedding side."""
    kernel, stride, pad = ((1, 4), (1, 2), (0, 1)) if wide else ((4, 4), (2, 2), (1, 1))
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, pad, bias=False), norm(batch_norm, o), nn.ReLU())


def up(i: int, o: int, batch_norm: bool, wide: bool = False) -> nn.Sequential:
    """Double both sides, or with `wide` only the embedding side."""
    kernel, stride, pad = ((1, 4), (1, 2), (0, 1)) if wide else ((4, 4), (2, 2), (1, 1))
    layer = nn.ConvTranspose2d(i, o, kernel, stride, pad, bias=False)
    return nn.Sequential(layer, norm(batch_norm, o), nn.ReLU())


def keep(i: int, o: int, batch_norm: bool) -> nn.Sequential:
    """A layer that keeps the sides."""
    return nn.Sequential(nn.Conv2d(i, o, 3, 1, 1, bias=False), norm(batch_norm, o), nn.ReLU())


class TextEncoder(nn.Module):
    """Token ids int64 `[B, length]` to a location and a raw scale, each `[B, latent]`."""

    def __init__(
        self,
        length: int,
        vocabulary: int,
        latent: int,
        base: int = 32,
        padding: int = 1,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.extra, self.padding = -length % 8, padding
        self.embedding = nn.Embedding(vocabulary, 4 * base)
        bn = batch_norm
        self.tower = nn.Sequential(
            down(1, base, bn),
            down(base, 2 * base, bn),
            down(2 * base, 4 * base, bn),
            down(4 * base, 8 * base, bn, wide=True),
            down(8 * base, 16 * base, bn, wide=True),
        )
        features = 16 * base * ((length + self.extra) // 8) * (4 * base // 32)
        self.location = nn.Linear(features, latent)
        self.scale = nn.Linear(features, latent)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        words = self.embedding(F.pad(tokens, (0, self.extra), value=self.padding))
        h = self.tower(words.unsqueeze(1)).flatten(1)
        return at_least_float32(self.location(h)), at_least_float32(self.scale(h))


class TextDecoder(nn.Module):
    """Latents `[..., latent]` to logits `[..., length, vocabulary]`."""

    def __init__(
        self, length: int, vocabulary: int, latent: int, base: int = 32, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.length, bn = length, batch_norm
        self.start = (16 * base, -(-length // 8), 4 * base // 32)
        self.linear = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        self.tower = nn.Sequential(
            norm(bn, 16 * base),
            nn.ReLU(),
            up(16 * base, 8 * base, bn, wide=True),
            keep(8 * base, 8 * base, bn),
            up(8 * base, 4 * base, bn, wide=True),
            keep(4 * base, 4 * base, bn),
            up(4 * base, 2 * base, bn),
            up(2 * base, base, bn),
            up(base, 1, bn),
        )
        self.words = nn.Linear(4 * base, vocabulary)

    @folded
    def forward(self, z: Tensor) -> Tensor:
        h = self.tower(self.linear(z).unflatten(-1, self.start))
        return at_least_float32(self.words(h.squeeze(1)[:, : self.length]))
