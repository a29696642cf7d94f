"""The joint energy network of `ours` (P1 Appendix D; METHODS 2.14.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from datasets.spec import DataSpec
from methods.parts.networks.common import at_least_float32

HEADS = ("linear", "mlp")


def pooled_kernel(kernel: Tensor) -> Tensor:
    """The 4x4 kernel `[O, I, 4, 4]` whose stride-2 convolution is a 3x3 convolution followed by 2x2 pooling.

    Averaging four neighbouring outputs is averaging the kernel over four shifts: 4/9 of the products.
    """
    return F.avg_pool2d(F.pad(kernel, (1, 1, 1, 1)), 2, stride=1)


def stacked_kernels(convolutions: Iterable[nn.Module]) -> Tensor:
    """Kernels of convolutions over separate channels as the one kernel `[sum O, sum I, k, k]`, zero between.

    One convolution of all modalities together is faster than one per modality, although it multiplies zeros.
    """
    kernels = [convolution.weight for convolution in convolutions]
    blocks = torch.block_diag(*[kernel.flatten(1) for kernel in kernels])
    return blocks.unflatten(1, (-1, *kernels[0].shape[2:]))


class EnergyBlock(nn.Module):
    """Residual block: [ReLU] conv3x3 ReLU conv3x3 [average-pool] plus a 1x1 shortcut.

    The head block takes raw features, so it has no leading ReLU, which would discard half the input
    (P1 prints the opposite, the author's earlier code does as here).
    """

    def __init__(self, channels_in: int, channels_out: int, *, down: bool, head: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False) if head or down else None
        self.down, self.head = down, head

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.conv1(x if self.head else F.relu(x)))
        if self.down:
            main = F.conv2d(hidden, pooled_kernel(self.conv2.weight), stride=2, padding=1)
        else:
            main = self.conv2(hidden)
        if self.skip is None:
            return main + x
        # Pooling and a 1x1 convolution commute; pooling first is four times cheaper.
        return main + self.skip(F.avg_pool2d(x, 2) if self.down else x)


class ImageEnergyFeatures(nn.Module):
    """Images of one size -> one feature vector: a stem per modality, channels joined, four blocks.

    Sides are padded to a multiple of 8 with zeros (mid-grey in [-1, 1]), 28 becomes 32; the state of
    the chain keeps its own size.
    """

    def __init__(
        self, names: list[str], channels: list[int], size: tuple[int, int], width: int, stem: int, stride: int
    ) -> None:
        super().__init__()
        self.names, self.stride = names, stride
        (top, bottom), (left, right) = ((-s % 8 // 2, -s % 8 - -s % 8 // 2) for s in size)
        # Padding that is the same on both sides is free: the convolution does it.
        self.padding = (1 + min(top, bottom), 1 + min(left, right))
        self.pad = (0, max(right - left, 0), 0, max(bottom - top, 0))
        self.stems = nn.ModuleList(nn.Conv2d(c, stem, 3, stride, padding=1, bias=False) for c in channels)
        self.blocks = nn.Sequential(
            EnergyBlock(stem * len(names), width, down=True, head=True),
            EnergyBlock(width, width, down=True),
            EnergyBlock(width, width, down=False),
            EnergyBlock(width, width, down=False),
        )

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """Images `[B, C, H, W]` in [-1, 1] -> features `[B, width]`."""
        joined = torch.cat([x[name] for name in self.names], 1)
        joined = F.pad(joined, self.pad) if any(self.pad) else joined
        stems = F.conv2d(joined, stacked_kernels(self.stems), stride=self.stride, padding=self.padding)
        return F.relu(self.blocks(stems)).mean((2, 3))


class TextEnergyFeatures(nn.Sequential):
    """Embedded words `[B, L, D]` -> features `[B, width]`: linear, ReLU, linear on the flattened array.

    The last layer has no bias, which would cancel between data and negatives.
    """

    def __init__(self, length: int, size: int, width: int) -> None:
        first, last = nn.Linear(length * size, width), nn.Linear(width, width, bias=False)
        super().__init__(nn.Flatten(), first, nn.ReLU(), last)


class JointEnergy(nn.Module):
    """U(X) `[B]` over all modalities jointly; p(X) is proportional to exp(-U(X)) (P1 Eqn 1).

    Images of equal size share the trunk; every text, whose words are embedded by as many numbers as `texts`
    says, has its own features. All features joined feed the head: `linear`, the layer of P1, whose U is a sum
    over sizes and texts, so that a caption pulls no picture; or `mlp`, two layers, which couples them.
    `spectral_norm` bounds the Lipschitz constant of every layer.
    """

    def __init__(
        self,
        spec: DataSpec,
        width: int = 128,
        stem: int = 16,
        stride: int = 1,
        spectral_norm: bool = True,
        texts: Mapping[str, int] | None = None,
        head: str = "linear",
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"energy_head '{head}' is none of {', '.join(HEADS)}")
        sizes: dict[tuple[int, int], list[str]] = {}
        for modality in spec.images:
            sizes.setdefault(modality.shape[1:], []).append(modality.name)  # type: ignore[arg-type]
        self.trunks = nn.ModuleList(
            ImageEnergyFeatures(names, [spec[n].shape[0] for n in names], size, width, stem, stride)
            for size, names in sizes.items()
        )
        self.texts = nn.ModuleDict(
            {k: TextEnergyFeatures(spec[k].shape[0], size, width) for k, size in (texts or {}).items()}
        )
        joined = width * (len(sizes) + len(self.texts))
        if head == "linear":
            self.head = nn.Linear(joined, 1)
        else:
            self.head = nn.Sequential(nn.Linear(joined, width), nn.ReLU(), nn.Linear(width, 1))
        if spectral_norm:
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    with_spectral_norm(module)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        features = [trunk(x) for trunk in self.trunks]
        features += [text(x[name]) for name, text in self.texts.items()]
        return at_least_float32(self.head(torch.cat(features, 1)).squeeze(1))
