"""Net-B and Net-C: the residual networks of MMVAE+ (METHODS.md 1.5), without normalisation layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.networks.common import at_least_float32, folded

SLOPE = 0.2
BRANCH = 0.1  # factor on the residual branch


class Block(nn.Module):
    """Shortcut + 0.1 * branch; the branch is twice (leaky ReLU, conv 3x3) through min(in, out) channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = min(inputs, outputs)
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # In place wherever nothing else needs the input: a feature map less to keep for the backward pass.
        branch = self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE, inplace=True))
        return self.shortcut(x) + BRANCH * branch


def plan(height: int, side: int, width: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes and channels per stage: 28 -> 14 -> 7 (Net-B), from 64 pixels on down to about 2 (Net-C)."""
    stages = 2
    if max(height, side) > 32:
        while max(height, side) >> stages > 2:
            stages += 1
    sizes = [(height, side)]
    for _ in range(stages):
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes, [width * min(2**i, 4) for i in range(stages + 1)]


class ResnetEncoder(nn.Module):
    """One tower: images `[B, C, H, W]` to a location and a raw scale, each `[B, latent]`."""

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 64) -> None:
        super().__init__()
        sizes, channels = plan(shape[1], shape[2], width)
        self.stem = nn.Conv2d(shape[0], channels[0], 3, padding=1)
        ins = [channels[0], *channels[:-1]]
        self.blocks = nn.ModuleList(Block(i, o) for i, o in zip(ins, channels, strict=True))
        features = channels[-1] * sizes[-1][0] * sizes[-1][1]
        self.location = nn.Linear(features, latent)
        self.scale = nn.Linear(features, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x = block(F.avg_pool2d(x, 3, stride=2, padding=1))
        h = x.flatten(1)
        return at_least_float32(self.location(h)), at_least_float32(self.scale(h))


class ResnetDecoder(nn.Module):
    """Latents `[..., latent]` to images `[..., C, H, W]`, linear output."""

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 64) -> None:
        super().__init__()
        sizes, channels = plan(shape[1], shape[2], width)
        self.start = (channels[-1], *sizes[-1])
        self.sizes = sizes[-2::-1]
        self.linear = nn.Linear(latent, channels[-1] * sizes[-1][0] * sizes[-1][1])
        ins = channels[::-1]
        self.blocks = nn.ModuleList(Block(i, o) for i, o in zip(ins, [*ins[1:], channels[0]], strict=True))
        self.out = nn.Conv2d(channels[0], shape[0], 3, padding=1)

    @folded
    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).unflatten(-1, self.start)
        for block, size in zip(self.blocks[:-1], self.sizes, strict=True):
            x = F.interpolate(block(x), size=size, mode="nearest")
        x = self.out(F.leaky_relu(self.blocks[-1](x), SLOPE, inplace=True))
        return at_least_float32(x)
