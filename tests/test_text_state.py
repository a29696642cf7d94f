"""Text in the data chain: its state and what the energy sees of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume
from hypothesis import given as forall
from hypothesis import settings as limits
from hypothesis import strategies as st
from text_support import (
    CUB,
    LENGTH,
    SPEC,
    WORDS,
    batch,
    logits,
    state_of,
)
from torch import nn
from torch.distributions import Normal

from methods.parts.langevin import frozen
from methods.parts.networks.energy import JointEnergy
from methods.parts.text_state import OPTIONS, TextStates

# -- the state --------------------------------------------------------------------------------------


@limits(max_examples=30, deadline=None)
@forall(
    seed=st.integers(0, 10**6), words=st.integers(3, 40), size=st.integers(8, 40), scale=st.floats(0.1, 9)
)
def test_the_nearest_embedding_of_an_embedding_is_its_token(seed, words, size, scale):
    text = state_of(scale=scale, words=words, size=size, seed=seed)
    tokens = torch.arange(words).expand(2, -1)
    gap = torch.cdist(text.table.double(), text.table.double()).fill_diagonal_(float("inf")).min()
    assume(gap > 0.02 * scale)  # rows that float32 cannot tell apart are not meant
    assert torch.equal(text.read(text.embed(tokens)), tokens)
    # Anything nearer to a row than half the way to the next one still reads as that row.
    away = nn.functional.normalize(torch.randn(2, words, size), dim=-1) * 0.49 * gap.float()
    assert torch.equal(text.read(text.embed(tokens) + away), tokens)


def test_a_state_is_read_by_euclidean_distance():
    text, state = state_of(scale=2.0), torch.randn(5, LENGTH, 16)
    assert torch.equal(text.read(state), torch.cdist(state, text.table).argmin(-1))


def test_rows_are_as_long_as_asked():
    torch.testing.assert_close(state_of(scale=1.7).table.norm(dim=1), torch.full((WORDS,), 1.7))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_energy_sees_the_mean_embedding_of_a_generators_words(option):
    text, out = state_of(option), logits()
    expected = torch.einsum("blv,vd->bld", out.double().softmax(-1), text.table.double())
    torch.testing.assert_close(text.embed(text.state(out)).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_certain_logits_are_tokens(option):
    text, tokens = state_of(option), batch()["caption"]
    state = text.state(200 * nn.functional.one_hot(tokens, WORDS).float())
    torch.testing.assert_close(text.embed(state), text.table[tokens])
    torch.testing.assert_close(text.embed(tokens), text.table[tokens])
    assert torch.equal(text.read(state), tokens)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_unrevised_state_asks_nothing_of_the_generator(option):
    text, out = state_of(option), logits().requires_grad_(True)
    drawn = text.state(out)
    (still,) = torch.autograd.grad(text.log_likelihood(drawn.detach(), drawn, 0.3, 5.0).sum(), out)
    assert still.abs().max() < 1e-5
    # A revised one pulls: following the gradient explains it better.
    revised = drawn.detach() + 0.3 * torch.randn_like(drawn)
    fit = text.log_likelihood(revised, text.state(out), 0.3, 5.0)
    (pull,) = torch.autograd.grad(fit.sum(), out)
    better = text.log_likelihood(revised, text.state(out + 1e-3 * pull), 0.3, 5.0)
    assert fit.shape == (4,) and (better > fit).all()


def test_the_revised_likelihood_is_gaussian_or_categorical():
    out, other = logits(), logits(seed=9)
    text = state_of()
    a, b = text.state(out), text.state(other)
    constant = LENGTH * 16 * Normal(0.0, 0.3).log_prob(torch.tensor(0.0))
    expected = Normal(b, 0.3).log_prob(a).flatten(1).sum(1) - constant
    torch.testing.assert_close(text.log_likelihood(a, b, 0.3, 5.0), expected, atol=1e-3, rtol=1e-4)
    simplex = state_of("simplex")
    expected = -5 * nn.functional.cross_entropy(
        other.flatten(0, 1), out.softmax(-1).flatten(0, 1), reduction="none"
    ).view(4, LENGTH).sum(1)
    found = simplex.log_likelihood(simplex.state(out), simplex.state(other), 0.3, 5.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("normal", [False, True])
def test_noise_is_as_long_as_words(normal):
    torch.manual_seed(0)
    noise = state_of(scale=2.0).noise(500, LENGTH, normal)
    assert noise.shape == (500, LENGTH, 16)
    assert abs(float(noise.square().sum(-1).mean()) - 4) < 0.1 and abs(float(noise.mean())) < 0.01
    assert state_of("simplex").noise(2, LENGTH).shape == (2, LENGTH, WORDS)


def test_states_are_float32_under_bf16():
    text = state_of()
    with torch.autocast("cpu", torch.bfloat16):
        rough = text.state(logits())
    assert rough.dtype == torch.float32 and torch.equal(rough, text.state(logits()))


def test_without_text_everything_passes_through():
    x = {"photo": torch.rand(2, 3)}
    none = TextStates({}, 1.0, "embedding")
    for answer in (none.state(x), none.embed(x), none.read(x)):
        assert list(answer) == ["photo"] and answer["photo"] is x["photo"]
    assert none.moving(x) == ["photo"] and not none.state_dict() and not none.noise(3, SPEC)


# -- the energy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("option", ["embedding", "simplex"])
def test_the_energy_gradient_of_a_text_state_by_finite_differences(head, option):
    torch.manual_seed(0)
    energy = JointEnergy(SPEC, 8, 4, texts={"caption": 16}, head=head).double()
    text = state_of(option)
    photo = torch.randn(2, 3, 12, 12, dtype=torch.double)
    state = text.state(logits(2)).double().requires_grad_(True)

    def value(state):
        # `mix` computes in float32 by design; the reference stays in float64.
        weights = state.softmax(-1) @ text.table.double() if option == "simplex" else state
        return energy({"photo": photo, "caption": weights}).double()

    # The network rounds its answer to float32, so the step is a large one.
    with frozen(energy):
        (gradient,) = torch.autograd.grad(value(state).sum(), state)
        direction = gradient / gradient.norm()
        with torch.no_grad():
            slope = (value(state + 0.02 * direction) - value(state - 0.02 * direction)).sum() / 0.04
    assert gradient.norm() > 0
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=2e-2)


def test_the_network_has_the_size_of_the_table():
    """METHODS 2.14.4 counts 1.22 M and, with the text branch, 1.76 M parameters at nef = 128."""

    def size(**settings):
        energy = JointEnergy(CUB, 128, 128, 2, False, **settings)
        return sum(p.numel() for p in energy.parameters()) / 1e6

    assert size() == pytest.approx(1.22, abs=0.01)
    assert size(texts={"caption": 128}) == pytest.approx(1.76, abs=0.01)


@pytest.mark.parametrize(("head", "coupled"), [("linear", False), ("mlp", True)])
def test_only_a_head_of_two_layers_couples_picture_and_caption(head, coupled):
    torch.manual_seed(0)
    energy = JointEnergy(SPEC, 8, 4, texts={"caption": 16}, head=head)
    photo = torch.rand(3, 3, 12, 12, requires_grad=True)
    pulls = []
    with frozen(energy):
        for seed in (0, 1):
            caption = 3 * torch.randn(3, LENGTH, 16, generator=torch.Generator().manual_seed(seed))
            pulls += torch.autograd.grad(energy({"photo": photo, "caption": caption}).sum(), photo)
    assert torch.allclose(*pulls, atol=1e-8) is not coupled
