"""The ablations of `ours` change what they say and nothing else (METHODS 2.16)."""

from __future__ import annotations

import pytest
import torch
from cooperative_support import ENERGY, SMALL
from torch.distributions import Normal

from bench.config import resolve
from bench.errors import UsageError
from datasets.spec import DataSpec, Modality
from methods.base import Diverged, Progress
from methods.indep_generators import IndepGenerators
from methods.indep_inference import IndepInference
from methods.mle_ebm import MLEEBM
from methods.ours import Ours
from methods.parts.energy_learning import contrast, uniform_images
from methods.parts.langevin import langevin
from methods.parts.latents import Diagonal

SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(3)))
REVISION = Progress("revision", 1, 10)
SEPARATE = [IndepGenerators, IndepInference]


def make(cls=Ours, spec=SPEC, **settings):
    torch.manual_seed(0)
    small = ENERGY if cls is MLEEBM else SMALL
    return cls(spec, **{**small, **settings})


def batch(n=6, seed=1, spec=SPEC):
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(n, *m.shape, generator=generator) for m in spec}


def seeded(call, seed=3):
    torch.manual_seed(seed)
    return call()


# -- the energy and its noise ------------------------------------------------------------------------


def test_noise_fills_the_range_evenly_and_independently():
    torch.manual_seed(0)
    noise = uniform_images(SPEC, 400, torch.device("cpu"))
    flat = torch.stack([noise[name].flatten() for name in SPEC.names])
    assert flat.min() >= -1 and flat.max() <= 1
    shares = torch.histc(flat, 20, -1, 1) / flat.numel()
    assert (shares - 0.05).abs().max() < 0.002
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 0.02


def test_normal_noise_is_standard():
    flat = torch.cat([x.flatten() for x in seeded(lambda: make(MLEEBM, start="normal").noise(200)).values()])
    assert abs(float(flat.mean())) < 0.01 and abs(float(flat.std()) - 1) < 0.01
    with pytest.raises(ValueError, match="start 'zero' is none of uniform, normal"):
        make(MLEEBM, start="zero")


def test_contrast_has_the_gradient_of_the_likelihood():
    """U = a x^2 / 2 is a Gaussian of precision a: d(-log p)/da = E_data[x^2]/2 - 1/(2a)."""
    torch.manual_seed(0)
    a = torch.tensor(2.0, requires_grad=True)

    def energy(state):
        return 0.5 * a * state["x"].square().sum(1)

    data = 1.5 * torch.randn(20_000, 1)
    start = {"x": 2 * torch.rand(20_000, 1) - 1}
    negatives, _ = langevin(start, energy, 300, 0.2, 0.2)
    loss, terms = contrast(energy, {"x": data}, negatives)
    (gradient,) = torch.autograd.grad(loss, a)
    exact = 0.5 * data.square().mean() - 0.5 / 2.0
    assert abs(float(gradient - exact)) < 0.02
    assert torch.isclose(loss, terms["energy_data"] - terms["energy_revised"], atol=1e-6)


def test_maximum_likelihood_finds_the_precision_of_a_gaussian():
    """Descending the contrast with short chains from noise ends at a = 1 / variance of the data."""
    torch.manual_seed(0)
    a = torch.tensor(0.3, requires_grad=True)
    data = 0.7 * torch.randn(4000, 1)
    optimiser = torch.optim.Adam([a], 0.05)

    def energy(state):
        return 0.5 * a * state["x"].square().sum(1)

    for _ in range(150):
        start = {"x": 2 * torch.rand(1000, 1) - 1}
        negatives, _ = langevin(start, energy, 40, 0.3, 0.3)
        optimiser.zero_grad()
        contrast(energy, {"x": data}, negatives)[0].backward()
        optimiser.step()
    assert abs(float(a.detach()) - 1 / 0.49) < 0.25


def test_mle_ebm_is_the_energy_alone_and_starts_from_noise(monkeypatch):
    method, x = make(MLEEBM), batch()
    assert all(name.startswith("energy.") for name, _ in method.named_parameters())
    assert list(method.param_groups()) == ["energy"]
    starts = []
    real = MLEEBM.revise_data

    def spy(self, start, *more):
        starts.append(start)
        return real(self, start, *more)

    monkeypatch.setattr(MLEEBM, "revise_data", spy)
    loss = seeded(lambda: method(x, Progress("train", 0, 10)))
    noise = seeded(lambda: uniform_images(SPEC, 6, torch.device("cpu")))
    assert all(torch.equal(starts[0][name], noise[name]) for name in SPEC.names)
    assert set(loss.parts) == {"energy"} and loss.total.requires_grad
    method.joint_generate(2)
    assert len(starts[1]["m0"]) == 2


def test_mle_ebm_descends_data_minus_chain_ends():
    method, x = make(MLEEBM, energy_penalty=0.2).eval(), batch()
    loss = seeded(lambda: method(x, Progress("train", 1, 10)))
    ends = seeded(lambda: method.revise_data(method.noise(6)))
    real, fake = method.energy(method_units(x)), method.energy(ends)
    expected = real.mean() - fake.mean() + 0.2 * (real.square().mean() + fake.square().mean())
    assert torch.isclose(loss.total, expected, atol=1e-6)


def method_units(x):
    return {name: 2 * image - 1 for name, image in x.items()}


def test_mle_ebm_says_what_it_cannot_do_and_stops_when_a_chain_runs_off():
    for task in ("cross", "encode", "interpolate"):
        assert "no latents" in MLEEBM.unsupported(SPEC, task)
    assert MLEEBM.unsupported(SPEC, "joint") is None and MLEEBM.unsupported(SPEC, "chain") is None
    method = make(MLEEBM)
    assert method.nfe("ebm", "joint") == 3 and method.nfe("ebm", "joint", 60) == 60
    method = make(MLEEBM, data_noise=5.0)
    with pytest.raises(Diverged, match="moved"):
        method(batch(), Progress("train", 0, 10))
    assert method.eval()(batch(), Progress("train", 0, 10)).terms["moved"] > 2


# -- each initialiser of `ours` replaced by noise ------------------------------------------------------


def test_a_data_chain_from_noise_leaves_no_pairs():
    method, x = make(data_start="noise"), batch()
    loss = seeded(lambda: method(x, REVISION))
    assert {"on_revised", "infer_revised"}.isdisjoint(loss.terms)
    assert torch.isclose(loss.parts["generator"], loss.terms["on_data"])
    assert torch.isclose(loss.parts["inference"], loss.terms["infer_data"])
    noise = method.first_images({"z": torch.zeros(500, 5)})
    assert abs(float(noise["m1"].var()) - 1 / 3) < 0.01


def test_a_noise_start_changes_no_sample_of_the_generator():
    usual, noisy, x = make().eval(), make(data_start="noise").eval(), batch()
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, noisy.state_dict()[name])
    with torch.no_grad():
        for draw in (
            lambda m: m.joint_generate(4, "gen"),
            lambda m: m.cross_generate({"m1": x["m1"]}, SPEC.names, "gen_revised"),
        ):
            a, b = seeded(lambda draw=draw: draw(usual)), seeded(lambda draw=draw: draw(noisy))
            assert all(torch.equal(a[name], b[name]) for name in a)
        far = seeded(lambda: noisy.joint_generate(200, "ebm", 1))["m0"]
    # One step of the chain leaves noise almost as it was: U[-1, 1] is [0, 1] outside.
    assert abs(float(far.mean()) - 0.5) < 0.05 and abs(float(far.var()) - 1 / 12) < 0.02
    assert noisy.nfe("ebm", "joint") == 3 and usual.nfe("ebm", "joint") == 4


def test_observed_modalities_are_held_when_the_others_start_from_noise(monkeypatch):
    method, x = make(data_start="noise").eval(), batch()
    seen = []
    real = method.revise_data
    monkeypatch.setattr(method, "revise_data", lambda *a, **k: seen.append(a) or real(*a, **k))
    with torch.no_grad():
        out = method.cross_generate({"m1": x["m1"]}, SPEC.names, "ebm")
    start, held = seen[0][:2]
    assert set(start) == {"m0", "m2"} and torch.equal(held["m1"], 2 * x["m1"] - 1)
    assert not torch.equal(out["m1"], x["m1"])


def test_a_latent_chain_from_the_prior_forgets_the_encoder():
    usual, blind, x = make(), make(latent_start="prior"), batch(400)
    experts = blind.experts(blind.to_model(x))
    shifted = {name: e.map(lambda q: Diagonal(q.location + 9, q.scale)) for name, e in experts.items()}
    start = seeded(lambda: blind.first_latents(shifted))["z"]
    assert abs(float(start.mean())) < 0.1 and abs(float(start.std()) - 1) < 0.05
    assert float(usual.first_latents(shifted)["z"].mean()) > 5
    # Sampling by the generator alone still asks the encoder.
    assert float(blind.posterior_draw(shifted)["z"].mean()) > 5
    loss = blind(batch(), REVISION)
    assert {"on_revised", "infer_revised"} <= set(loss.terms)


def test_unknown_starts_are_refused():
    with pytest.raises(ValueError, match="data_start 'data' is none of generator, noise"):
        make(data_start="data")
    with pytest.raises(ValueError, match="warm_start=1.5 is no share"):
        make(warm_start=1.5)


def test_the_vae_part_alone_is_the_warm_start_without_an_energy():
    usual, alone, x = make(warm_start=0.5), make(warm_start=1.0), batch()
    assert [stage.name for stage in alone.stages] == ["warm"] and "energy" not in alone.param_groups()
    assert list(alone.samplers) == ["gen", "gen_revised"] and alone.chains == ("posterior",)
    losses = [seeded(lambda m=m: m(x, Progress("warm", 0, 10)).total) for m in (usual, alone)]
    assert torch.equal(*losses)
    with torch.no_grad():
        assert set(alone.eval().joint_generate(2)) == set(SPEC.names)
    with pytest.raises(ValueError, match="posterior"):
        alone.chain("data", None, 2)


# -- nothing shared ------------------------------------------------------------------------------------


def test_independent_generators_share_no_latent():
    method = make(IndepGenerators).eval()
    z = method.sample_prior(4)["z"].requires_grad_(True)
    assert z.shape == (4, 15)
    for position, name in enumerate(SPEC.names):
        (gradient,) = torch.autograd.grad(method.decode({"z": z}, [name])[name].sum(), z)
        touched = gradient.abs().sum(0).split(5)
        assert [bool(block.any()) for block in touched] == [i == position for i in range(3)]
    blocks = method.prior_draw(3000)
    corr = torch.corrcoef(torch.stack([blocks[f"z.{name}"].flatten() for name in SPEC.names]))
    assert (corr - torch.eye(3)).abs().max() < 0.03


def test_independent_generators_encode_each_modality_in_its_own_block():
    method, x = make(IndepGenerators).eval(), batch()
    with torch.no_grad():
        every, one = method.encode(x)["z"].split(5, 1), method.encode({"m1": x["m1"]})["z"].split(5, 1)
        assert torch.equal(one[1], every[1]) and not one[0].any() and not one[2].any()
        out = seeded(lambda: method.cross_generate({"m1": x["m1"]}, ["m0"], "gen"))
        other = seeded(lambda: method.cross_generate({"m1": 1 - x["m1"]}, ["m0"], "gen"))
    assert torch.equal(out["m0"], other["m0"]), "what is missing knows nothing of what is given"


@pytest.mark.parametrize("cls", SEPARATE)
def test_every_latent_follows_its_own_modality(cls):
    """Neither the posterior nor its chain lets another modality, or its drift bound, reach z_m."""
    method = make(cls, latent_noise=0.0, latent_step_size=0.3, latent_max_drift=0.02).eval()
    x, y = method.to_model(batch(seed=1)), method.to_model(batch(seed=2))
    mixed = {"m0": x["m0"], "m1": y["m1"], "m2": y["m2"]}
    ends = []
    for given in (x, mixed):
        start = seeded(lambda given=given: method.posterior_draw(method.experts(given)))
        ends.append(method.revise_latent(start, given)[0])
    assert torch.equal(ends[0]["z.m0"], ends[1]["z.m0"])
    assert not torch.equal(ends[0]["z.m1"], ends[1]["z.m1"])


@pytest.mark.parametrize("cls", SEPARATE)
def test_the_log_density_is_a_sum_over_modalities(cls):
    method = make(cls)
    experts = method.experts(method.to_model(batch()))
    own = {f"z.{name}": torch.randn(6, 5) for name in SPEC.names}
    shared = {"z": torch.randn(6, 5)}
    for latent in (own, shared):
        reference = sum(
            Normal(e.z.location.double(), e.z.scale.double())
            .log_prob(latent.get(f"z.{name}", latent.get("z")).double())
            .sum(1)
            for name, e in experts.items()
        )
        assert torch.allclose(method.log_joint_posterior(experts, latent).double(), reference, atol=1e-4)


@pytest.mark.parametrize("cls", SEPARATE)
def test_with_one_modality_nothing_is_lost(cls):
    """M = 1: the mixture has one expert, so warm loss and log q are those of `ours`."""
    spec = DataSpec((Modality("m0", "image", (3, 12, 12)),))
    mine, usual = make(cls, spec), make(Ours, spec)
    mine.load_state_dict(usual.state_dict())
    x = usual.to_model(batch(spec=spec))
    losses = [seeded(lambda m=m: m.warm_loss(x).total) for m in (mine, usual)]
    assert torch.isclose(*losses, rtol=1e-6)
    experts, z = usual.experts(x), torch.randn(6, 5)
    assert torch.allclose(
        mine.log_joint_posterior(experts, {"z.m0": z}),
        usual.log_joint_posterior(experts, {"z": z}),
        atol=1e-5,
    )


@pytest.mark.parametrize("cls", SEPARATE)
def test_each_loss_trains_its_own_network_only(cls):
    method = make(cls)
    owner = {id(p): name for name, g in method.param_groups().items() for p in g.params}
    for part, value in method(batch(), REVISION).parts.items():
        parameters = list(method.parameters())
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        assert {owner[id(p)] for p, g in zip(parameters, gradients, strict=True) if g is not None} == {part}


def test_independent_inference_shares_z_in_the_negative_phase_only(monkeypatch):
    method, x = make(IndepInference), batch()
    seen = []
    real = method.generate
    monkeypatch.setattr(method, "generate", lambda latent, *a: seen.append(set(latent)) or real(latent, *a))
    method(x, REVISION)
    assert seen[0] == {"z"}, "negatives come from one latent for all modalities"
    assert all(keys == {f"z.{name}" for name in SPEC.names} for keys in seen[1:])


def test_independent_inference_draws_the_latent_of_one_given_modality():
    method, x = make(IndepInference).eval(), batch(300)
    for encoder in method.encoders.values():
        encoder.towers[0].scale.bias.data.fill_(-40.0)
        encoder.towers[0].scale.weight.data.zero_()
    observed = method.to_model({name: x[name] for name in ("m0", "m2")})
    with torch.no_grad():
        means = [e.z.location for e in method.experts(observed).values()]
        z = seeded(lambda: method.infer(observed))["z"]
    near = torch.stack([(z - mean).norm(dim=1) for mean in means])
    assert (near.min(0).values < 0.3).all()
    share = float((near[0] < near[1]).float().mean())
    assert 0.4 < share < 0.6


# -- presets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["polydigits", "polymnist"])
@pytest.mark.parametrize("preset", ["quick", "fair", "fair-compute", "paper"])
def test_all_else_is_equal(dataset, preset):
    """An ablation has the budget, networks, chains and rates of `ours`."""
    ours = resolve("ours", dataset, preset)
    for name in ("indep_generators", "indep_inference"):
        found = resolve(name, dataset, preset)
        assert (found.hyper, found.train, found.plan) == (ours.hyper, ours.train, ours.plan)
    mle = resolve("mle_ebm", dataset, preset)
    assert (mle.train, mle.plan) == (ours.train, ours.plan)
    assert set(mle.hyper) - set(ours.hyper) == {"start"}
    own = {"start", "data_step_size", "data_noise", "spectral_norm", "energy_penalty"}
    assert all(ours.hyper[key] == value for key, value in mle.hyper.items() if key not in own)


def test_a_preset_like_nothing_is_named(tmp_path, monkeypatch):
    from bench import preset_files

    folder = tmp_path / "polydigits"
    folder.mkdir()
    (folder / "_common.toml").write_text("[quick.train]\nsteps = 3\n")
    (folder / "mle_ebm.toml").write_text('[quick]\nlike = "ours"\n')
    monkeypatch.setattr(preset_files, "PRESETS", tmp_path)
    with pytest.raises(UsageError, match="'mle_ebm.toml' takes 'quick' from 'ours', which has none"):
        resolve("mle_ebm", "polydigits", "quick")
