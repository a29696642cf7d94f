"""The fast forms inside the energy network equal the plain ones they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.spec import DataSpec, Modality
from methods.parts.langevin import frozen
from methods.parts.networks.energy import EnergyBlock, JointEnergy, pooled_kernel, stacked_kernels


def plain_block(block: EnergyBlock, x: torch.Tensor) -> torch.Tensor:
    main = block.conv2(F.relu(block.conv1(x if block.head else F.relu(x))))
    skip = block.skip(x) if block.skip is not None else x
    return F.avg_pool2d(main + skip, 2) if block.down else main + skip


def plain_energy(net: JointEnergy, x: dict[str, torch.Tensor], pad: tuple[int, ...]) -> torch.Tensor:
    (trunk,) = net.trunks
    features = [stem(F.pad(x[n], pad)) for n, stem in zip(trunk.names, trunk.stems, strict=True)]
    hidden = torch.cat(features, 1)
    for block in trunk.blocks:
        hidden = plain_block(block, hidden)
    return net.head(F.relu(hidden).mean((2, 3))).squeeze(1)


def test_a_stride_2_convolution_replaces_convolution_and_pooling() -> None:
    x, kernel = torch.randn(2, 3, 10, 8).double(), torch.randn(5, 3, 3, 3).double()
    slow = F.avg_pool2d(F.conv2d(x, kernel, padding=1), 2)
    fast = F.conv2d(x, pooled_kernel(kernel), stride=2, padding=1)
    torch.testing.assert_close(fast, slow)


def test_one_convolution_replaces_one_per_modality() -> None:
    convolutions = [nn.Conv2d(c, 4, 3, bias=False) for c in (3, 1, 2)]
    x = [torch.randn(2, c, 9, 9) for c in (3, 1, 2)]
    slow = torch.cat([conv(part) for conv, part in zip(convolutions, x, strict=True)], 1)
    torch.testing.assert_close(F.conv2d(torch.cat(x, 1), stacked_kernels(convolutions)), slow)


@pytest.mark.parametrize("size", [(28, 28), (32, 16), (27, 30)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spectral_norm", [True, False])
def test_the_network_equals_its_plain_form(size: tuple[int, int], stride: int, spectral_norm: bool) -> None:
    spec = DataSpec((Modality("a", "image", (3, *size)), Modality("b", "image", (1, *size))))
    net = JointEnergy(spec, 8, 4, stride, spectral_norm).double().eval()
    x = {m.name: torch.randn(3, *m.shape, dtype=torch.float64, requires_grad=True) for m in spec}
    (height, width) = (-s % 8 for s in size)
    pad = (width // 2, width - width // 2, height // 2, height - height // 2)
    with frozen(net):
        fast, slow = net(x), plain_energy(net, x, pad)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(value.sum(), list(x.values())) for value in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
