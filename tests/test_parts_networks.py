"""Networks: published parameter counts, every image size, leading dimensions, no coupling of examples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.registry import load_method_class
from datasets.spec import DataSpec, Modality, UserError
from methods.parts.networks.build import build_decoder, build_encoder
from methods.parts.networks.text_towers import TextBranches, TextTowers

DIGIT = Modality("m0", "image", (3, 28, 28))
CAPTION = Modality("caption", "text", (32,), vocabulary=1590)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_net_a_has_the_published_size() -> None:
    # 1.668 M + 1.144 M per modality at d = 512 (METHODS.md 1.5), written out layer by layer.
    convs = (3 * 32 + 32 * 64 + 64 * 128) * 9 + 32 + 64 + 128
    heads = 2048 * 512 + 512 + 2 * (512 * 512 + 512)
    assert count(build_encoder(DIGIT, 512)) == convs + heads
    up = (128 * 64 + 64 * 32 + 32 * 3) * 9 + 64 + 32 + 3
    assert count(build_decoder(DIGIT, 512)) == 512 * 2048 + 2048 + up


def test_net_b_has_the_published_size() -> None:
    towers = 2 * count(build_encoder(DIGIT, 32, "resnet", 64))
    decoder = count(build_decoder(DIGIT, 64, "resnet", 64))
    assert round(towers / 1e6, 2) == 2.95
    assert round(decoder / 1e6, 2) == 1.49
    assert round(5 * (towers + decoder) / 1e6, 2) == 22.16


def test_net_c_starts_from_two_by_two() -> None:
    picture = Modality("image", "image", (3, 64, 64))
    decoder = build_decoder(picture, 64, "resnet", 64)
    assert decoder.start == (256, 2, 2)
    two_towers = count(build_encoder(picture, 16, "resnet", 64)) + count(
        build_encoder(picture, 48, "resnet", 64)
    )
    assert round(two_towers / 1e6, 2) == 8.55
    assert round(count(decoder) / 1e6, 2) == 4.28


@pytest.mark.parametrize("network", ["cnn", "resnet"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 64, 64), (1, 16, 16), (3, 20, 36), (1, 128, 128)])
def test_shapes(network: str, shape: tuple[int, int, int]) -> None:
    modality = Modality("x", "image", shape)
    location, scale = build_encoder(modality, 5, network, 4)(torch.rand(2, *shape))
    assert location.shape == scale.shape == (2, 5)
    assert build_decoder(modality, 5, network, 4)(torch.randn(3, 2, 5)).shape == (3, 2, *shape)


def test_text_towers_have_the_published_layers() -> None:
    """Net-D at base 32, counted by hand from METHODS 1.5: BatchNorm has two numbers a channel."""
    caption = Modality("t", "text", (32,), vocabulary=1590)

    def conv(i: int, o: int, side: int) -> int:
        return i * o * side + 2 * o

    first = conv(1, 32, 16) + conv(32, 64, 16) + conv(64, 128, 16)
    more = conv(128, 256, 4) + conv(256, 512, 4)
    own = first + 2 * (8192 * 16 + 16)
    shared = first + more + 2 * (512 * 4 * 4 * 48 + 48)
    encoder = build_encoder(caption, 64, "resnet", 64, private=16)
    assert count(encoder) == 1590 * 128 + own + shared
    start = 2 * (512 * 16) + (16 + 48) * 512 * 16 + 2 * 2 * 512
    widen = conv(512, 256, 4) + conv(256, 128, 4)
    last = conv(256, 128, 9) + conv(128, 64, 16) + conv(64, 32, 16) + conv(32, 1, 16)
    decoder = build_decoder(caption, 64, "resnet", 64, private=16)
    assert count(decoder) == start + 2 * widen + conv(256, 256, 9) + last + 128 * 1590 + 1590


def test_text_towers_keep_private_and_shared_latents_apart() -> None:
    torch.manual_seed(0)
    caption = Modality("t", "text", (12,), vocabulary=11)
    encoder = build_encoder(caption, 7, "resnet", 8, private=3).eval()
    tokens = torch.randint(0, 11, (4, 12))
    location, scale = encoder(tokens)
    assert location.shape == scale.shape == (4, 7)
    for block, tower in ((slice(0, 3), encoder.own), (slice(3, 7), encoder.tower)):
        encoder.zero_grad()
        (encoder(tokens)[0][:, block].sum() + encoder(tokens)[1][:, block].sum()).backward()
        touched = {n for n, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        mine = {id(p) for p in tower.parameters()}
        towers = {n for n, p in encoder.named_parameters() if n.startswith(("own.", "tower."))}
        assert touched & towers == {n for n, p in encoder.named_parameters() if id(p) in mine}
        assert "embedding.weight" in touched
    decoder = build_decoder(caption, 7, "resnet", 8, private=3).eval()
    z = torch.randn(2, 5, 7)
    logits = decoder(z)
    assert logits.shape == (2, 5, 12, 11)
    own, shared = decoder.linears
    assert (own.in_features, shared.in_features) == (3, 4)
    for linear, moved in ((own, slice(0, 3)), (shared, slice(3, 7))):
        seen = []
        hook = linear.register_forward_hook(lambda module, given, out, seen=seen: seen.append(given[0]))
        decoder(z)
        hook.remove()
        assert torch.equal(seen[0].reshape(2, 5, -1), z[..., moved])
        other = z.clone()
        other[..., moved] += 1
        assert not torch.allclose(decoder(other), logits)
    # z goes through one layer more than w, the one that keeps the sides (METHODS 1.5).
    assert [len(branch) for branch in decoder.branches] == [4, 5]


@pytest.mark.parametrize("name", ["mmvaeplus", "ours_w"])
def test_methods_with_private_latents_have_text_towers(name: str) -> None:
    spec = DataSpec((DIGIT, Modality("t", "text", (12,), vocabulary=11)))
    kind = load_method_class(name)
    towers = {
        network: [type(m) for m in kind(spec, latent=4, private=3, network=network, width=8).modules()]
        for network in ("cnn", "resnet")
    }
    for part in (TextTowers, TextBranches):
        assert towers["resnet"].count(part) == 1 and part not in towers["cnn"]


@pytest.mark.parametrize("network", ["cnn", "resnet"])
@pytest.mark.parametrize("length", [8, 12, 32])
def test_text_shapes(network: str, length: int) -> None:
    modality = Modality("t", "text", (length,), vocabulary=11)
    tokens = torch.randint(0, 11, (3, length))
    location, scale = build_encoder(modality, 6, network, 8)(tokens)
    assert location.shape == scale.shape == (3, 6)
    assert build_decoder(modality, 6, network, 8)(torch.randn(4, 3, 6)).shape == (4, 3, length, 11)


@pytest.mark.parametrize(("network", "width"), [("cnn", 8), ("resnet", 8)])
@pytest.mark.parametrize(
    "modality", [DIGIT, Modality("t", "text", (12,), vocabulary=11)], ids=["image", "text"]
)
def test_examples_do_not_see_each_other(network: str, width: int, modality: Modality) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(modality, 4, network, width).eval()
    decoder = build_decoder(modality, 4, network, width).eval()
    x = torch.rand(6, *modality.shape) if modality.kind == "image" else torch.randint(0, 11, (6, 12))
    alone, together = encoder(x[2:3])[0], encoder(x)[0][2:3]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    z = torch.randn(2, 3, 4)
    torch.testing.assert_close(decoder(z)[1, 2], decoder(z[1, 2]), atol=1e-5, rtol=1e-4)


def test_shared_text_backbone_is_free_of_batch_norm() -> None:
    for build in (build_encoder, build_decoder):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in build(CAPTION, 4, "cnn", 8).modules())
        assert any(isinstance(m, nn.BatchNorm2d) for m in build(CAPTION, 4, "resnet", 16).modules())


def test_outputs_are_float32_under_bf16() -> None:
    for network in ("cnn", "resnet"):
        encoder, decoder = build_encoder(DIGIT, 4, network, 8), build_decoder(DIGIT, 4, network, 8)
        with torch.autocast("cpu", torch.bfloat16):
            location, scale = encoder(torch.rand(2, 3, 28, 28))
            image = decoder(location)
        assert location.dtype == scale.dtype == image.dtype == torch.float32


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="choose 'cnn' or 'resnet'"):
        build_encoder(DIGIT, 4, "transformer", 8)
    with pytest.raises(UserError, match="at least 1"):
        build_decoder(DIGIT, 0)
    with pytest.raises(UserError, match="at least 8"):
        build_encoder(Modality("dot", "image", (1, 4, 4)), 4)
