"""`ours` and `ours_w`: losses against independent evaluations, stop-gradients, networks, settings."""

from __future__ import annotations

import math

import pytest
import torch
from cooperative_support import SMALL
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from datasets.spec import DataSpec, Modality
from methods.base import Loss, Progress
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.cooperative import soft_clamp
from methods.parts.cooperative_losses import expert_shares
from methods.parts.latents import Diagonal, Expert
from methods.parts.networks.energy import JointEnergy

SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(3)))
REVISION = Progress("revision", 1, 10)


def make(cls=Ours, **settings):
    torch.manual_seed(0)
    extra = {"private": 2} if cls is OursW else {}
    return cls(SPEC, **{**SMALL, **extra, **settings})


def batch(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(n, *m.shape, generator=generator) for m in SPEC}


def group_of(method):
    return {id(p): name for name, g in method.param_groups().items() for p in g.params}


@pytest.mark.parametrize("cls", [Ours, OursW])
def test_each_loss_trains_its_own_network_only(cls):
    method = make(cls)
    loss = method(batch(), REVISION)
    owner = group_of(method)
    for part, value in loss.parts.items():
        parameters = list(method.parameters())
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        touched = {owner[id(p)] for p, g in zip(parameters, gradients, strict=True) if g is not None}
        assert touched == {part}
    assert torch.isclose(loss.total, sum(loss.parts.values()))


def test_inference_loss_is_the_mixture_log_density():
    """l of Eqn 12 against torch's MixtureSameFamily in float64."""
    method = make()
    experts = method.experts(method.to_model(batch()))
    z = torch.randn(6, 5)
    location = torch.stack([e.z.location for e in experts.values()], 1).double()
    scale = torch.stack([e.z.scale for e in experts.values()], 1).double()
    reference = MixtureSameFamily(
        Categorical(logits=torch.zeros(6, 3, dtype=torch.double)), Independent(Normal(location, scale), 1)
    ).log_prob(z.double())
    assert torch.allclose(method.log_joint_posterior(experts, {"z": z}).double(), reference, atol=1e-4)


def test_private_latents_enter_without_mixture():
    method = make(OursW)
    experts = method.experts(method.to_model(batch()))
    latent = method.prior_draw(6)
    own = sum(
        Normal(e.w.location, e.w.scale).log_prob(latent[f"w.{name}"]).sum(1) for name, e in experts.items()
    )
    shared = torch.stack(
        [Normal(e.z.location, e.z.scale).log_prob(latent["z"]).sum(1) for e in experts.values()]
    )
    expected = torch.logsumexp(shared, 0) - math.log(3) + own
    assert torch.allclose(method.log_joint_posterior(experts, latent), expected, atol=1e-4)


def test_likelihood_is_gaussian_up_to_its_constant():
    method = make(sigma=0.4)
    x, mean = batch(seed=2), batch(seed=3)
    reference = sum(Normal(mean[k], 0.4).log_prob(x[k]).flatten(1).sum(1) for k in x)
    constant = 3 * 432 * (0.5 * math.log(2 * math.pi) + math.log(0.4))
    assert torch.allclose(method.log_likelihood(x, mean), reference + constant, rtol=1e-4)


def test_generator_loss_weights_both_terms():
    method = make(generator_on_data=2.0, generator_on_revised=3.0)
    loss = method(batch(), REVISION)
    expected = 2 * loss.terms["on_data"] + 3 * loss.terms["on_revised"]
    assert torch.isclose(loss.parts["generator"], expected)


@pytest.mark.parametrize("mean_share", [0.0, 0.3])
def test_expert_mean_mixes_the_average_log_density(mean_share):
    method = make(expert_mean=mean_share)
    experts = method.experts(method.to_model(batch()))
    z = torch.randn(6, 5)
    logs = torch.stack([Normal(e.z.location, e.z.scale).log_prob(z).sum(1) for e in experts.values()])
    expected = (1 - mean_share) * (torch.logsumexp(logs, 0) - math.log(3)) + mean_share * logs.mean(0)
    assert torch.allclose(method.log_joint_posterior(experts, {"z": z}), expected, atol=1e-4)


def test_energy_learns_the_right_sign():
    """Data bright, negatives dark: after a few steps of Eqn 10 the data must have the lower energy."""
    method = make(spectral_norm=False)
    method.energy.train()
    data = {m.name: 0.5 + 0.1 * torch.randn(16, *m.shape) for m in SPEC}
    dark = {m.name: -0.5 + 0.1 * torch.randn(16, *m.shape) for m in SPEC}
    optimiser = torch.optim.Adam(method.energy.parameters(), 1e-3)
    for _ in range(20):
        loss, _ = method.energy_loss(data, dark)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert method.energy(data).mean() < method.energy(dark).mean()
    moved, energies = method.revise_data(dark, steps=20)
    assert energies[-1].mean() < energies[0].mean()
    assert moved["m0"].mean() > dark["m0"].mean()


def test_energy_penalty_and_temperature():
    plain, penalised = make(), make(energy_penalty=0.1)
    tempered = make(temper_energy_loss=True, data_step_size=0.5, data_noise=0.1)
    x, other = batch(seed=2), batch(seed=3)
    for method in (plain, penalised, tempered):
        method.eval()
    base, _ = plain.energy_loss(x, other)
    squares = plain.energy(x).square().mean() + plain.energy(other).square().mean()
    assert torch.isclose(penalised.energy_loss(x, other)[0], base + 0.1 * squares, atol=1e-6)
    assert torch.isclose(tempered.energy_loss(x, other)[0], 25 * base, atol=1e-5)


def test_resampled_negatives_come_after_the_generator_step():
    method = make(resample_negatives=True)
    losses = method(batch(), REVISION)
    assert not isinstance(losses, Loss)
    first = next(iter(losses))
    assert set(first.parts) == {"generator", "inference"}
    (second,) = losses
    assert set(second.parts) == {"energy"}


@pytest.mark.parametrize("cls", [Ours, OursW])
def test_the_three_losses_and_their_gradients_in_float64(cls):
    """P1 Eqn 10 to 12 written out for fixed ends of both chains, with torch.distributions."""
    weights = dict(
        generator_on_data=0.9, generator_on_revised=3.0, inference_on_data=1.1, inference_on_revised=0.7
    )
    method = make(cls, **weights, sigma=0.8, spectral_norm=False, energy_penalty=0.2).double()
    x = {name: image.double() for name, image in batch().items()}
    torch.manual_seed(2)
    negatives = {m.name: torch.randn(6, *m.shape).double() for m in SPEC}
    blocks = {"z": 5, **({f"w.{n}": 2 for n in SPEC.names} if cls is OursW else {})}
    prior, revised = ({k: torch.randn(6, d).double() for k, d in blocks.items()} for _ in range(2))
    method.prior_draw = lambda n: prior
    method.revise_data = lambda start: (negatives, torch.zeros(1, 6))
    method.revise_latent = lambda start, x, unobserved: (revised, torch.zeros(1, 6))
    parts = method(x, REVISION).parts

    images = {name: 2 * image - 1 for name, image in x.items()}

    def likelihood(observed, latent):
        total = 0.0
        for name in SPEC.names:
            code = torch.cat([latent[f"w.{name}"], latent["z"]], 1) if cls is OursW else latent["z"]
            density = Normal(method.generators[name](code).tanh(), 0.8)
            # Without the constant of the normal density.
            total = total + (density.log_prob(observed[name]) + math.log(0.8 * math.tau**0.5)).sum((1, 2, 3))
        return total

    def posterior(observed, latent):
        experts = method.experts(observed)
        stacked = [torch.stack([getattr(e.z, k) for e in experts.values()], 1) for k in ("location", "scale")]
        mixture = MixtureSameFamily(
            Categorical(torch.ones(6, 3).double()), Independent(Normal(*stacked), 1)
        ).log_prob(latent["z"])
        for name, expert in experts.items():
            if expert.w is not None:
                density = Normal(expert.w.location, expert.w.scale)
                mixture = mixture + density.log_prob(latent[f"w.{name}"]).sum(1)
        return mixture

    real, fake = method.energy(images), method.energy(negatives)
    expected = {
        "energy": real.mean() - fake.mean() + 0.2 * (real.square().mean() + fake.square().mean()),
        "generator": -(0.9 * likelihood(images, revised) + 3.0 * likelihood(negatives, prior)).mean(),
        "inference": -(1.1 * posterior(images, revised) + 0.7 * posterior(negatives, prior)).mean(),
    }
    assert set(parts) == set(expected)
    for name, group in method.param_groups().items():
        torch.testing.assert_close(parts[name], expected[name], rtol=1e-10, atol=1e-10)
        asked = [p for p in group.params if p.requires_grad]
        for own, other in zip(
            *(
                torch.autograd.grad(v, asked, allow_unused=True, retain_graph=True)
                for v in (parts[name], expected[name])
            ),
            strict=True,
        ):
            assert (own is None) == (other is None)
            if own is not None:
                torch.testing.assert_close(
                    own, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()) + 1e-12
                )


def test_updates_step_each_network_as_often_as_asked():
    for updates, expected in {
        "1:2:1": [{"generator", "inference"}, {"generator"}, {"energy"}],
        "2:1:3": [{"generator", "inference"}, {"inference"}, {"inference"}, {"energy"}, {"energy"}],
    }.items():
        losses = make(updates=updates)(batch(), REVISION)
        assert not isinstance(losses, Loss)
        losses = list(losses)
        assert [set(loss.parts) for loss in losses] == expected
        named = [name for loss in losses for name in loss.terms]
        assert len(named) == len(set(named)) and {"energy", "generator", "inference"} <= set(named)
    assert isinstance(make(updates="1:1:1")(batch(), REVISION), Loss)
    for wrong in ("1:2", "0:1:1", "1:a:1", "1:1:-1", ""):
        with pytest.raises(ValueError, match="energy:generator:inference"):
            make(updates=wrong)


def test_repeated_updates_follow_the_networks_that_have_learned_on_the_same_ends():
    """Without steps in between a repeated loss is the first again; after one on the generator it is not."""
    x = batch()

    def run(learn):
        torch.manual_seed(3)
        method, seen = make(updates="2:2:2"), {}
        for loss in method(x, REVISION):
            for name, part in loss.parts.items():
                seen.setdefault(name, []).append(float(part.detach()))
            if learn and "generator" in loss.parts:
                loss.total.backward()
                with torch.no_grad():
                    for p in method.generators.parameters():
                        p -= 1e-5 * p.grad
                        p.grad = None
        return seen

    still, learned = run(False), run(True)
    for name in ("generator", "inference"):
        assert still[name][1] == pytest.approx(still[name][0], rel=1e-6), name
    assert learned["generator"][0] == still["generator"][0]
    assert learned["generator"][1] < learned["generator"][0]
    assert learned["inference"] == pytest.approx(still["inference"], rel=1e-5)


def test_one_update_each_is_the_loss_of_all_three_at_once():
    x, parts = batch(), []
    for updates in ("1:1:1", "1:1:2"):
        torch.manual_seed(3)
        losses = make(updates=updates)(x, REVISION)
        first = [losses] if isinstance(losses, Loss) else list(losses)
        parts.append({k: float(v.detach()) for loss in reversed(first) for k, v in loss.parts.items()})
    assert parts[0] == pytest.approx(parts[1], rel=1e-5)


def test_warm_start_is_a_stage_of_its_own():
    method = make(warm_start=0.25)
    assert [(s.name, s.share) for s in method.stages] == [("warm", 0.25), ("revision", 0.75)]
    loss = method(batch(), Progress("warm", 0, 10))
    loss.total.backward()
    assert all(p.grad is None for p in method.energy.parameters())
    assert [s.name for s in make().stages] == ["revision"]


def test_warm_loss_equals_the_elbo_of_one_modality():
    """With a single modality the mixture has one expert: reconstruction minus a Monte-Carlo KL."""
    spec = DataSpec((Modality("m0", "image", (3, 12, 12)),))
    torch.manual_seed(0)
    method = Ours(spec, **{**SMALL, "warm_beta": 2.0})
    x = method.to_model({"m0": batch()["m0"]})
    torch.manual_seed(5)
    loss = method.warm_loss(x)
    q = method.experts(x)["m0"].z
    torch.manual_seed(5)
    z = q.location + q.scale * torch.randn_like(q.location)
    kl = Normal(q.location, q.scale).log_prob(z).sum(1) - Normal(0.0, 1.0).log_prob(z).sum(1)
    elbo = method.log_likelihood(x, method.generate({"z": z})) - 2 * kl
    assert torch.isclose(loss.total, -elbo.mean(), rtol=1e-5)


def test_soft_clamp_stays_inside_and_is_near_identity():
    x = torch.linspace(-50, 50, 401)
    y = soft_clamp(x, -8, 1)
    assert y.min() >= -8 and y.max() <= 1.001 and (y.diff() >= 0).all()
    assert abs(float(soft_clamp(torch.tensor(-3.5), -8, 1)) + 3.5) < 0.03


def test_energy_network_pads_28_to_32_and_sees_every_modality():
    spec = DataSpec(tuple(Modality(f"m{i}", "image", (3, 28, 28)) for i in range(5)))
    net = JointEnergy(spec).eval()
    x = {m.name: torch.zeros(2, *m.shape) for m in spec}
    assert net(x).shape == (2,)
    for name in spec.names:
        assert not torch.equal(net({**x, name: torch.rand(2, 3, 28, 28)}), net(x))
    # METHODS 2.14.4 counts 1.15 M parameters at nef = 128 and five stems of 16.
    plain = JointEnergy(spec, spectral_norm=False)
    assert 1.10e6 < sum(p.numel() for p in plain.parameters()) < 1.20e6


def test_the_cost_of_a_step_is_measured_where_the_energy_learns_after_the_others():
    from bench.costing import step_cost

    x = batch()
    plain, again = (step_cost(make(resample_negatives=flag), x).flops for flag in (False, True))
    assert again > plain > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_steps": -1}, {"sigma": 0.0}, {"warm_start": 1.5}, {"data_step_size": -1.0},
        {"expert_mean": 3.0}, {"log_variance_low": 2.0}, {"lr_generator": -1.0},
        {"energy_width": 0}, {"beta1": 1.0},
        {"data_noise": 0.0, "temper_energy_loss": True},
        {"text_weight": -1.0}, {"text_scale": 0.0}, {"text_state": "words"}, {"energy_head": "deep"},
    ],
    ids=lambda wrong: "+".join(wrong),
)  # fmt: skip
@pytest.mark.parametrize("cls", [Ours, OursW])
def test_impossible_settings_are_refused_by_name(cls, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(cls, **wrong)


def test_the_share_of_every_expert_is_recorded():
    method, x = make(), batch()
    terms = method(x, Progress("revision", 1, 10, 0)).terms
    shares = torch.stack([terms[f"share.{name}"] for name in SPEC.names])
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5) and (shares > 0).all()
    z = torch.zeros(4, 2)
    near, far = (Expert(Diagonal(z + away, torch.ones(4, 2)), None) for away in (0.0, 3.0))
    found = expert_shares({"near": near, "far": far}, z)
    # Two dimensions, each 3 standard deviations off: exp(-9) against 1.
    assert float(found["share.far"]) == pytest.approx(math.exp(-9) / (1 + math.exp(-9)))
    assert float(found["share.near"]) == pytest.approx(1 / (1 + math.exp(-9)))
