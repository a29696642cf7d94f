"""How `ours` trains and samples captions."""

from __future__ import annotations

import pytest
import torch
from text_support import (
    COOPERATIVE,
    LENGTH,
    REVISION,
    SMALL,
    SPEC,
    WORDS,
    batch,
    make,
    seeded,
)
from torch import nn
from torch.distributions import Categorical, Normal

from datasets.spec import DataSpec
from methods.base import Progress
from methods.mle_ebm import MLEEBM
from methods.ours import Ours
from methods.parts.networks.energy import JointEnergy
from methods.parts.text_state import OPTIONS

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
