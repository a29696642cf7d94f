"""Net-D as published, for shared and private latents: a tower and a branch for each (METHODS.md 1.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.networks.common import at_least_float32, folded
from methods.parts.networks.text import TextEncoder, down, keep, norm, up


class TextTowers(TextEncoder):
    """Token ids int64 `[B, length]` to a location and a raw scale, each `[B, private + latent]`, w before z.

    The tower of z is that of `TextEncoder`, the tower of w its first three layers; both read one embedding.
    """

    def __init__(
        self,
        length: int,
        vocabulary: int,
        private: int,
        latent: int,
        base: int = 32,
        padding: int = 1,
        batch_norm: bool = True,
    ) -> None:
        super().__init__(length, vocabulary, latent, base, padding, batch_norm)
        self.own = nn.Sequential(
            down(1, base, batch_norm), down(base, 2 * base, batch_norm), down(2 * base, 4 * base, batch_norm)
        )
        features = 4 * base * ((length + self.extra) // 8) * (4 * base // 8)
        self.own_location = nn.Linear(features, private)
        self.own_scale = nn.Linear(features, private)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        words = self.embedding(F.pad(tokens, (0, self.extra), value=self.padding)).unsqueeze(1)
        shared, own = self.tower(words).flatten(1), self.own(words).flatten(1)
        location = torch.cat([self.own_location(own), self.location(shared)], -1)
        scale = torch.cat([self.own_scale(own), self.scale(shared)], -1)
        return at_least_float32(location), at_least_float32(scale)


class TextBranches(nn.Module):
    """Latents `[..., private + latent]`, w before z, to logits `[..., length, vocabulary]`.

    w and z widen to a quarter of the picture of words in branches of their own, z through one layer more,
    and go on together.
    """

    def __init__(
        self,
        length: int,
        vocabulary: int,
        private: int,
        latent: int,
        base: int = 32,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.length, self.sizes, bn = length, (private, latent), batch_norm
        self.start = (16 * base, -(-length // 8), 4 * base // 32)
        self.linears = nn.ModuleList(
            nn.Linear(size, self.start[0] * self.start[1] * self.start[2]) for size in self.sizes
        )

        def branch(*middle: nn.Module) -> nn.Sequential:
            first, last = up(16 * base, 8 * base, bn, wide=True), up(8 * base, 4 * base, bn, wide=True)
            return nn.Sequential(norm(bn, 16 * base), nn.ReLU(), first, *middle, last)

        self.branches = nn.ModuleList([branch(), branch(keep(8 * base, 8 * base, bn))])
        self.tower = nn.Sequential(
            keep(8 * base, 4 * base, bn),
            up(4 * base, 2 * base, bn),
            up(2 * base, base, bn),
            up(base, 1, bn),
        )
        self.words = nn.Linear(4 * base, vocabulary)

    @folded
    def forward(self, latent: Tensor) -> Tensor:
        parts = zip(latent.split(self.sizes, -1), self.linears, self.branches, strict=True)
        h = torch.cat([branch(linear(part).unflatten(-1, self.start)) for part, linear, branch in parts], 1)
        return at_least_float32(self.words(self.tower(h).squeeze(1)[:, : self.length]))
