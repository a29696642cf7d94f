"""The transposed convolution of Net-A, torch's own function, made of faster pieces on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

TAPS = torch.tensor([[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]], dtype=torch.float32)
"""TAPS[p, a, k] = 1 where row k of the kernel takes input row i + a to output row 2 i + p."""

FEW_CHANNELS = 4
"""Up to here four phases of the output fill no more than the 16 lanes of a vector register."""


def phase_kernel(kernel: Tensor) -> Tensor:
    """Kernel `[4 O, I, 2, 2]` whose convolution gives the four phases of a stride-2 transposed 3x3 one."""
    taps = TAPS.to(kernel)
    return torch.einsum("pak,qbl,iokl->opqiab", taps, taps, kernel).flatten(0, 2)


def doubled(x: Tensor, kernel: Tensor, output_padding: tuple[int, int]) -> Tensor:
    """Transposed 3x3 convolution, stride 2, padding 1: `[B, I, H, W]` -> `[B, O, 2 H - 1 + p, 2 W - 1 + p]`.

    Batched input only. A picture of few channels leaves most of a vector register empty, so its phases are
    computed as channels.
    """
    if kernel.shape[1] > FEW_CHANNELS:
        return F.conv_transpose2d(x, kernel, None, 2, 1, output_padding)
    out = F.pixel_shuffle(F.conv2d(F.pad(x, (0, 1, 0, 1)), phase_kernel(kernel)), 2)
    height, width = (2 * n - 1 + p for n, p in zip(x.shape[2:], output_padding, strict=True))
    return out[..., :height, :width].contiguous()


class _Doubling(torch.autograd.Function):
    """`doubled` plus the bias; backward is that of the transposed convolution, which is fast as it is."""

    @staticmethod
    def forward(ctx, x, kernel, bias, output_padding):
        ctx.save_for_backward(x, kernel)
        ctx.output_padding = output_padding
        out, bias = doubled(x, kernel, output_padding), bias.view(1, -1, 1, 1)
        # Given the bias, oneDNN takes a slower kernel; added in place it costs next to nothing. Compiled, an
        # addition in place makes all gradients 0 (torch 2.11), and one that is not is fused.
        return out + bias if torch.compiler.is_compiling() else out.add_(bias)

    @staticmethod
    def backward(ctx, gradient):
        x, kernel = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        geometry = [2, 2], [1, 1], [1, 1], True, list(ctx.output_padding), 1
        sizes = [kernel.shape[1]]
        return *torch.ops.aten.convolution_backward(gradient, x, kernel, sizes, *geometry, wanted), None


class DoublingConv(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of kernel 3, stride 2, padding 1: sides n become 2 n - 1 + output_padding."""

    def __init__(self, channels_in: int, channels_out: int, output_padding: tuple[int, int]) -> None:
        super().__init__(channels_in, channels_out, 3, 2, 1, output_padding)

    def forward(self, x: Tensor) -> Tensor:
        # A FLOP counter is a dispatch mode; it must find the same operations on every device.
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or is_in_torch_dispatch_mode():
            return super().forward(x)
        return _Doubling.apply(x, self.weight, self.bias, self.output_padding)
