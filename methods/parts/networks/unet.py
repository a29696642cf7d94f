"""The U-Net of DDPM, from diffusers, told which picture to refine (METHODS.md 2.10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import UserError
from methods.parts.networks.common import at_least_float32

ATTENTION_SIDE = 16
"""Attention at the level whose longer side is this, as in DDPM."""


def multipliers(side: int) -> tuple[int, ...]:
    """Channels of the levels in units of the base width: DiffuseVAE's for 32 and for 64 pixels."""
    return (1, 2, 2, 2) if side <= 32 else (1, 2, 2, 2, 4)


class RefinerUNet(nn.Module):
    """What x_t `[B, *shape]` hides (noise or velocity), given r of the same shape and t, kind `[B]`.

    r joins x_t along the channels, the embedding of `kind` that of t. Sides are padded with zeros (mid-grey
    in [-1, 1]) to what the levels can halve, 28 to 32, and cut again: the state keeps its size.

    kinds: how many kinds of picture share the network. width: base width, a multiple of 4 (groups of 4
    channels are normalised at the first level, as in DDPM). blocks: residual blocks of a level.
    Raises UserError for an impossible width or number of blocks.
    """

    def __init__(self, shape: tuple[int, ...], kinds: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        if width < 4 or width % 4 or blocks < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"a U-Net of width {width} with {blocks} blocks a level and dropout {dropout} is impossible; "
                "give a diffusion_width that 4 divides, diffusion_blocks >= 1, diffusion_dropout in [0, 1)"
            )
        # Imported here: it takes seconds, and only this network needs it.
        from diffusers.models.unets.unet_2d import UNet2DModel

        channels, *sides = shape
        levels = multipliers(max(sides))
        unit = 2 ** (len(levels) - 1)
        (top, bottom), (left, right) = ((-s % unit // 2, -s % unit - -s % unit // 2) for s in sides)
        self.pad = (left, right, top, bottom)
        longest = max(s + -s % unit for s in sides)
        attended = [longest == ATTENTION_SIDE * 2**i for i in range(len(levels))]
        self.kinds = kinds
        self.net = UNet2DModel(
            in_channels=2 * channels,
            out_channels=channels,
            block_out_channels=tuple(width * m for m in levels),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            attention_head_dim=None,
            norm_num_groups=width // 4,
            dropout=dropout,
            num_class_embeds=kinds if kinds > 1 else None,
        )
        for module in self.net.modules():
            if hasattr(module, "to_k"):
                # A bias of the keys adds the same to all scores of a query, and the softmax drops it.
                module.to_k.register_parameter("bias", None)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, kind: Tensor) -> Tensor:
        left, right, top, bottom = self.pad
        both = F.pad(torch.cat([x, r], 1), self.pad)
        noise = self.net(both, t, class_labels=kind if self.kinds > 1 else None).sample
        return at_least_float32(noise[..., top : noise.shape[-2] - bottom, left : noise.shape[-1] - right])
