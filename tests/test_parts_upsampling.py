"""The fast transposed convolution is torch's, values and gradients, at every size and either padding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from methods.parts.networks.upsampling import DoublingConv, doubled


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_values_and_gradients_are_those_of_torch(batch, channels, size, padding) -> None:
    torch.manual_seed(0)
    layer = DoublingConv(*channels, padding).double()
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    ours, theirs = layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1, padding)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(theirs)
    for mine, torchs in zip(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights), strict=True
    ):
        torch.testing.assert_close(mine, torchs)


def test_gradients_are_right_to_second_order() -> None:
    torch.manual_seed(0)
    layer = DoublingConv(2, 3, (1, 0)).double()
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("channels", [3, 8])
def test_both_ways_to_compute_it_are_taken_and_agree(channels: int) -> None:
    x, kernel = torch.randn(4, 5, 7, 7), torch.randn(5, channels, 3, 3)
    torch.testing.assert_close(
        doubled(x, kernel, (1, 1)), F.conv_transpose2d(x, kernel, None, 2, 1, 1), atol=1e-5, rtol=1e-5
    )


def test_a_flop_counter_finds_the_operations_of_torchs_layer() -> None:
    def counted(layer: torch.nn.Module) -> int:
        x = torch.randn(2, 8, 7, 7, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return counter.get_total_flops()

    plain = torch.nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1)
    assert counted(DoublingConv(8, 3, (1, 1))) == counted(plain) > 0


def test_a_frozen_layer_gives_the_gradient_of_its_input_alone() -> None:
    layer = DoublingConv(4, 3, (1, 1)).requires_grad_(False)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None and layer.bias.grad is None


def test_bf16_keeps_to_torchs_own_kernel() -> None:
    layer, x = DoublingConv(4, 3, (1, 1)), torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        expected = F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1, 1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


def test_the_weights_are_those_of_the_layer_that_it_replaces() -> None:
    torch.manual_seed(3)
    ours = DoublingConv(4, 3, (1, 1))
    torch.manual_seed(3)
    theirs = torch.nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_are_right_when_compiled_whether_weights_ask_for_them_or_not(trained: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = DoublingConv(4, 3, (1, 1)).requires_grad_(trained)
    compiled = copy.deepcopy(layer)
    compiled.compile(backend="aot_eager", dynamic=False)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    found, counters = [], torch._dynamo.utils.counters
    counters.clear()
    for network in (layer, compiled):
        asked = [x, *(network.parameters() if trained else ())]
        found.append(torch.autograd.grad(network(x).square().sum(), asked))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
