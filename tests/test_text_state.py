"""Text in the data chain: its state, what the energy sees of it, how `ours` trains and samples with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume
from hypothesis import given as forall
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Normal

from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.indep_generators import IndepGenerators
from methods.indep_inference import IndepInference
from methods.mle_ebm import MLEEBM
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.langevin import frozen
from methods.parts.networks.energy import JointEnergy
from methods.parts.text_state import OPTIONS, TextState, TextStates

LENGTH, WORDS = 6, 11
SPEC = DataSpec(
    (
        Modality("photo", "image", (3, 12, 12)),
        Modality("caption", "text", (LENGTH,), vocabulary=WORDS),
    )
)
CUB = DataSpec((Modality("image", "image", (3, 64, 64)), Modality("caption", "text", (32,), vocabulary=1590)))
SMALL = dict(
    network="cnn",
    width=4,
    latent=5,
    energy_width=8,
    stem_width=4,
    data_steps=3,
    latent_steps=4,
    latent_step_size=0.01,
    latent_noise=0.01,
)
REVISION = Progress("revision", 1, 10)
COOPERATIVE = [Ours, OursW, IndepGenerators, IndepInference]


def make(cls=Ours, **settings):
    torch.manual_seed(0)
    extra = {"private": 2} if cls is OursW else {}
    return cls(SPEC, **{**SMALL, **extra, **settings})


def batch(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "photo": torch.rand(n, 3, 12, 12, generator=generator),
        "caption": torch.randint(0, WORDS, (n, LENGTH), generator=generator),
    }


def state_of(option="embedding", scale=1.0, words=WORDS, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TextState(torch.randn(words, size, generator=generator), scale, option)


def logits(n=4, seed=2):
    return 2 * torch.randn(n, LENGTH, WORDS, generator=torch.Generator().manual_seed(seed))


def seeded(call, seed=3):
    torch.manual_seed(seed)
    with torch.no_grad():
        return call()


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


# -- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", COOPERATIVE)
@pytest.mark.parametrize("option", OPTIONS)
def test_each_network_of_text_learns_from_its_own_loss_and_the_table_from_none(cls, option):
    method, x = make(cls, text_state=option), batch()
    loss = method(x, REVISION)
    owners = {
        "generator": ["generators.caption.words.weight"],
        "inference": ["encoders.caption.towers.0.embedding.weight"],
        "energy": ["energy.texts.caption.1.parametrizations.weight.original"],
    }
    parameters = dict(method.named_parameters())
    for part, value in loss.parts.items():
        for owner, names in owners.items():
            for name in names:
                (gradient,) = torch.autograd.grad(
                    value, parameters[name], retain_graph=True, allow_unused=True
                )
                assert (gradient is not None and gradient.abs().max() > 0) == (part == owner), (part, name)
    assert not any("table" in name for name in parameters)
    assert "texts.caption.table" in method.state_dict()


def test_training_leaves_the_table_alone():
    method = make(lr_generator=1e-2, lr_inference=1e-2, lr_energy=1e-2)
    before = method.texts["caption"].table.clone()
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    for step in range(3):
        optimiser.zero_grad()
        method(batch(seed=step), Progress("revision", step, 3)).total.backward()
        optimiser.step()
    assert torch.equal(method.texts["caption"].table, before)
    assert not torch.allclose(method.words()["caption"], before)


def test_the_words_of_the_warm_start_become_the_table_once():
    method = make(warm_start=0.5)
    with torch.no_grad():
        method.words()["caption"].copy_(torch.randn(WORDS, method.words()["caption"].shape[1]))
    rows = nn.functional.normalize(method.words()["caption"].detach(), dim=1)
    old = method.texts["caption"].table.clone()
    method(batch(), Progress("warm", 0, 10))
    assert torch.equal(method.texts["caption"].table, old) and not torch.allclose(old, rows)
    method(batch(), Progress("revision", 0, 10))
    torch.testing.assert_close(method.texts["caption"].table, rows)
    with torch.no_grad():
        method.words()["caption"].neg_()
    method(batch(), Progress("revision", 1, 10))
    torch.testing.assert_close(method.texts["caption"].table, rows)


def test_the_likelihood_of_a_caption_is_categorical():
    method, x = make(text_weight=3.0, sigma=0.4), batch()
    x = method.to_model(x)
    out = method.generate({"z": torch.randn(6, 5)})
    words = Categorical(logits=out["caption"]).log_prob(x["caption"]).sum(1)
    photo = -(x["photo"] - out["photo"]).square().flatten(1).sum(1) / (2 * 0.4**2)
    torch.testing.assert_close(method.log_likelihood(x, out), photo + 3 * words, rtol=1e-4, atol=1e-3)
    only = {"caption": out["caption"]}
    torch.testing.assert_close(method.log_likelihood(x, only), 3 * words, rtol=1e-4, atol=1e-3)


def test_a_latent_chain_follows_a_caption_alone():
    settings = dict(latent_noise=0.0, latent_max_drift=0.0, latent_step_size=0.1, text_weight=2.0)
    method, x = make(**settings).eval(), batch()
    z = torch.randn(6, 5, requires_grad=True)
    words = Categorical(logits=method.generators["caption"](z)).log_prob(x["caption"]).sum(1)
    log_joint = Normal(0.0, 1.0).log_prob(z).sum(1) + 2 * words
    (gradient,) = torch.autograd.grad(log_joint.sum(), z)
    revised, _ = method.revise_latent({"z": z.detach()}, {"caption": x["caption"]}, steps=1)
    torch.testing.assert_close(revised["z"], z.detach() + 0.005 * gradient, atol=1e-4, rtol=1e-4)


def test_the_losses_take_the_caption_that_the_chain_ended_in(monkeypatch):
    method, x = make(spectral_norm=False, sigma=0.5), batch()
    latents, ends = [], []
    prior, revise = method.prior_draw, method.revise_data

    def revised_far(start):
        state, energies = revise(start)
        ends.append({name: block + 0.3 * torch.randn_like(block) for name, block in state.items()})
        return ends[-1], energies

    monkeypatch.setattr(method, "prior_draw", lambda n: latents.append(prior(n)) or latents[-1])
    monkeypatch.setattr(method, "revise_data", revised_far)
    terms = method(x, REVISION).terms
    (end,), z = ends, latents[0]["z"]
    words = method.generators["caption"](z).softmax(-1) @ method.texts["caption"].table
    photo = method.generators["photo"](z).tanh()
    squares = (end["photo"] - photo).square().flatten(1).sum(1) + (end["caption"] - words).square().sum(
        (1, 2)
    )
    torch.testing.assert_close(terms["on_revised"], squares.mean() / (2 * 0.5**2), rtol=1e-4, atol=1e-3)
    tokens = torch.cdist(end["caption"], method.texts["caption"].table).argmin(-1)
    assert not torch.equal(tokens, method.texts["caption"].read(words))
    experts = method.experts({"photo": end["photo"], "caption": tokens})
    expected = -method.log_joint_posterior(experts, {"z": z}).mean()
    torch.testing.assert_close(terms["infer_revised"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["energy_revised"], method.energy(end).mean(), rtol=1e-4, atol=1e-5)
    rows = {"photo": 2 * x["photo"] - 1, "caption": method.texts["caption"].table[x["caption"]]}
    torch.testing.assert_close(terms["energy_data"], method.energy(rows).mean(), rtol=1e-4, atol=1e-5)


def test_the_inference_network_reads_revised_captions_as_tokens(monkeypatch):
    method, seen = make(), []
    experts = method.experts
    monkeypatch.setattr(method, "experts", lambda x: seen.append(x) or experts(x))
    method(batch(), REVISION)
    assert [x["caption"].dtype for x in seen] == [torch.int64, torch.int64]
    assert seen[1]["caption"].shape == (6, LENGTH) and seen[1]["photo"].is_floating_point()


@pytest.mark.parametrize("option", ["embedding", "simplex"])
def test_an_energy_that_learned_a_caption_revises_words_towards_it(option):
    """Data say word 5 everywhere, negatives word 7: the chain must rewrite 7 as 5."""
    method = make(text_state=option, data_step_size=0.5, data_noise=0.0)
    n, photo = 8, torch.zeros(8, 3, 12, 12)
    good, bad = (torch.full((n, LENGTH), word) for word in (5, 7))
    unsure = 3.0 * nn.functional.one_hot(bad, WORDS) + 2.0 * nn.functional.one_hot(good, WORDS)
    start = {"photo": photo, **method.texts.state({"caption": unsure.float()})}
    assert torch.equal(method.texts.read(start)["caption"], bad)
    optimiser = torch.optim.Adam(method.energy.parameters(), 1e-2)
    for _ in range(30):
        loss, _ = method.energy_loss({"photo": photo, "caption": good}, start)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    revised, energies = method.revise_data(start, steps=400)
    assert energies[-1].mean() < energies[0].mean()
    share = (method.texts.read(revised)["caption"] == good).float().mean()
    assert share > 0.8


def test_text_networks_hold_no_batch_statistics():
    method = make(network="resnet", width=16)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.modules())


@pytest.mark.slow
def test_training_learns_a_caption():
    method = make(text_weight=5.0, warm_start=0.5, sigma=1.0)
    x = batch(16)
    x["caption"] = torch.tensor([3, 5, 8, 8, 2, 1]).expand(16, -1).contiguous()
    optimiser = torch.optim.Adam([p for g in method.param_groups().values() for p in g.params], 3e-3)
    for stage, steps in (("warm", 60), ("revision", 60)):
        for step in range(steps):
            optimiser.zero_grad()
            method(x, Progress(stage, step, steps)).total.backward()
            optimiser.step()
    for sampler in ("gen", "ebm"):
        drawn = seeded(lambda s=sampler: method.eval().joint_generate(16, s))["caption"]
        assert (drawn == x["caption"]).float().mean() > 0.9
    drawn = seeded(lambda: method.cross_generate({"photo": x["photo"]}, ["caption"]))["caption"]
    assert (drawn == x["caption"]).float().mean() > 0.9


# -- sampling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", COOPERATIVE)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_chain_without_steps_returns_the_generators_caption(cls, option):
    method, x = make(cls, text_state=option).eval(), batch()
    gen, ebm = (seeded(lambda s=s: method.joint_generate(5, s, 0)) for s in ("gen", "ebm"))
    assert torch.equal(gen["caption"], ebm["caption"]) and torch.equal(gen["photo"], ebm["photo"])
    given = {"photo": x["photo"]}
    gen, ebm = (seeded(lambda s=s: method.cross_generate(given, ["caption"], s, 0)) for s in ("gen", "ebm"))
    assert torch.equal(gen["caption"], ebm["caption"])


def seen_by_the_energy(monkeypatch):
    seen = []
    forward = JointEnergy.forward

    def spy(self, state):
        seen.append({name: block.detach().clone() for name, block in state.items()})
        return forward(self, state)

    monkeypatch.setattr(JointEnergy, "forward", spy)
    return seen


@pytest.mark.parametrize("option", OPTIONS)
def test_a_given_caption_is_held_in_the_refinement_chain(option, monkeypatch):
    method, x = make(text_state=option).eval(), batch()
    seen = seen_by_the_energy(monkeypatch)
    seeded(lambda: method.cross_generate({"caption": x["caption"]}, ["photo"], "ebm"))
    rows = method.texts["caption"].table[x["caption"]]
    assert len(seen) == 3 and all(torch.equal(s["caption"], rows) for s in seen)
    assert not torch.equal(seen[0]["photo"], seen[-1]["photo"])


@pytest.mark.parametrize("option", OPTIONS)
def test_the_caption_moves_under_a_given_picture_unless_it_is_fixed(option, monkeypatch):
    method, x = make(text_state=option).eval(), batch()
    seen = seen_by_the_energy(monkeypatch)
    seeded(lambda: method.cross_generate({"photo": x["photo"]}, ["caption"], "ebm"))
    if option == "fixed":
        assert not seen
        return
    assert len(seen) == 3 and all(torch.equal(s["photo"], 2 * x["photo"] - 1) for s in seen)
    assert not torch.equal(seen[0]["caption"], seen[-1]["caption"])


def test_fixed_text_stays_in_every_chain(monkeypatch):
    method = make(text_state="fixed").eval()
    seen = seen_by_the_energy(monkeypatch)
    out = seeded(lambda: method.joint_generate(4))
    assert all(torch.equal(s["caption"], seen[0]["caption"]) for s in seen)
    assert not torch.equal(seen[0]["photo"], seen[-1]["photo"])
    chain = seeded(lambda: method.chain("data", None, 4, steps=2))
    assert out["caption"].dtype == chain.frames[-1]["caption"].dtype == torch.int64
    with pytest.raises(ValueError, match="text_state 'fixed'"):
        Ours(DataSpec((SPEC["caption"],)), **{**SMALL, "text_state": "fixed"})


@pytest.mark.parametrize("kind", ["data", "posterior"])
@pytest.mark.parametrize("option", OPTIONS)
def test_chains_show_captions_as_tokens(kind, option):
    method = make(text_state=option).eval()
    chain = seeded(lambda: method.chain(kind, batch(), 4, steps=4))
    for frame in chain.frames:
        assert frame["caption"].dtype == torch.int64 and frame["caption"].shape == (4, LENGTH)
        assert frame["photo"].shape == (4, 3, 12, 12)


def test_a_data_chain_may_start_from_noise_in_text_too():
    method, x = make(data_start="noise"), batch()
    assert torch.isfinite(method(x, REVISION).total)
    start = method.first_images({"z": torch.zeros(3, 5)})
    assert start["caption"].shape == (3, LENGTH, method.texts["caption"].table.shape[1])


def test_mle_ebm_samples_captions_from_noise():
    torch.manual_seed(0)
    method = MLEEBM(SPEC, energy_width=8, stem_width=4, data_steps=3, text_scale=2.0)
    loss = method(batch(), Progress("train", 0, 10))
    loss.total.backward()
    assert all(p.grad is not None for n, p in method.named_parameters() if n.startswith("energy.texts"))
    out = method.joint_generate(4)
    assert out["caption"].dtype == torch.int64 and out["caption"].shape == (4, LENGTH)
    table = method.texts["caption"].table
    torch.testing.assert_close(table.norm(dim=1), torch.full((WORDS,), 2.0))
    assert MLEEBM.unsupported(SPEC, "joint") is None
