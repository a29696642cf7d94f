"""Net-A: the plain strided CNN of the MoPoE comparisons (METHODS.md 1.5), for any image size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.networks.common import at_least_float32, folded
from methods.parts.networks.upsampling import DoublingConv


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Spatial sizes after each stride-2 stage: three stages (28 -> 14 -> 7 -> 4), more for large images.

    Stages are added until no side exceeds 8, so that the linear layers stay small at 256 pixels.
    """
    sizes = [(height, width)]
    while len(sizes) < 4 or max(sizes[-1]) > 8:
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


def stage_channels(stages: int, width: int) -> list[int]:
    """Channels after each stage: width, 2 width, then 4 width."""
    return [width * min(2**i, 4) for i in range(stages)]


def hidden_units(latent: int, width: int) -> int:
    """Units of the hidden linear layer: the latent size as published (512), never below 8 width.

    With a small latent the published rule would squeeze everything through that few ReLU units.
    """
    return max(latent, 8 * width)


class CnnEncoder(nn.Module):
    """Images `[B, C, H, W]` to a location and a raw scale, each `[B, latent]`."""

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32) -> None:
        super().__init__()
        channels, height, side = shape
        sizes = halvings(height, side)
        outs = stage_channels(len(sizes) - 1, width)
        ins = [channels, *outs[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(ins, outs, strict=True)
        )
        hidden = hidden_units(latent, width)
        self.linear = nn.Linear(outs[-1] * sizes[-1][0] * sizes[-1][1], hidden)
        self.location = nn.Linear(hidden, latent)
        self.scale = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        h = F.relu(self.linear(x.flatten(1)))
        return at_least_float32(self.location(h)), at_least_float32(self.scale(h))


class CnnDecoder(nn.Module):
    """Latents `[..., latent]` to images `[..., C, H, W]`, linear output."""

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32) -> None:
        super().__init__()
        channels, height, side = shape
        sizes = halvings(height, side)
        outs = stage_channels(len(sizes) - 1, width)
        self.start = (outs[-1], *sizes[-1])
        self.linear = nn.Linear(latent, outs[-1] * sizes[-1][0] * sizes[-1][1])
        down = [channels, *outs]
        layers = []
        for stage in range(len(outs), 0, -1):
            (h, w), (up_h, up_w) = sizes[stage], sizes[stage - 1]
            # A stride-2 transposed 3x3 turns n into 2n - 1; the extra row or column restores even sizes.
            extra = (up_h - (2 * h - 1), up_w - (2 * w - 1))
            layers.append(DoublingConv(down[stage], down[stage - 1], extra))
        self.convs = nn.ModuleList(layers)

    @folded
    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.linear(z)).unflatten(-1, self.start)
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else F.relu(x))
        return at_least_float32(x)
