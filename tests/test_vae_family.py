"""What every VAE baseline promises, on a spec with two images and a caption."""

from __future__ import annotations

import inspect

import pytest
import torch
from vae_support import METHODS, NOW, PRIVATE, SPEC, batch, build, seeded

from bench.config import class_signature
from datasets.spec import UserError
from methods.base import Method, Progress
from methods.parts.vae import MultimodalVAE

CHANGES = {
    "latent": 5, "private": 5, "samples": 3, "beta": 0.3, "learn_prior": False, "network": "resnet",
    "width": 16, "likelihood_scale": 0.3, "image_weight": 0.5, "text_weight": 3.0, "lr": 1e-5, "clip": 2.0,
    "prior_steps": 3, "prior_step_size": 0.1, "energy_width": 32, "energy_start": 0.5, "lr_energy": 1e-3,
    "anneal": 0.5, "random_subsets": 2, "prior_weight": 0.7, "prior_component": True, "alpha": 0.2,
    "beta1_energy": 0.1, "decay_energy": 0.5, "clusters": 5, "spread": 3.0,
    "posterior_steps": 3, "posterior_step_size": 0.3, "posterior_max_drift": 1e-3,
    "correlation": 0.2, "entropy": 10.0, "decoded": 2,
}  # fmt: skip


def every(methods: tuple[type[Method], ...] = METHODS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cls", methods, ids=lambda c: c.__name__)


@every()
def test_outputs_have_the_promised_names_shapes_and_types(cls: type[Method]) -> None:
    method, x = build(cls).eval(), batch()
    with torch.no_grad():
        joint = method.joint_generate(4)
        cross = method.cross_generate({"caption": x["caption"]}, ["photo", "caption"])
        z = method.encode({"caption": x["caption"], "photo": x["photo"]})
        prior = method.sample_prior(5)
    assert {n: tuple(t.shape) for n, t in joint.items()} == {m.name: (4, *m.shape) for m in SPEC}
    assert list(cross) == ["photo", "caption"] and len(cross["photo"]) == 6
    assert cross["caption"].dtype == torch.int64 and cross["photo"].dtype == torch.float32
    assert joint["caption"].min() >= 0 and joint["caption"].max() < 9
    own = {"w.photo", "w.caption"} if cls in PRIVATE else set()
    assert set(z) == {"z"} | own and z["z"].shape == (6, 4)
    assert len(prior) == (4 if cls in PRIVATE else 1) and prior["z"].shape == (5, 4)
    assert (method.latents == "shared+private") == (cls in PRIVATE)


@every()
def test_encode_is_deterministic_and_follows_the_batch(cls: type[Method]) -> None:
    method, x = build(cls).eval(), batch()
    given = {"sketch": x["sketch"], "caption": x["caption"]}
    with torch.no_grad():
        first, again = method.encode(given), method.encode(dict(reversed(given.items())))
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        permuted = method.encode({n: t[order] for n, t in given.items()})
    for name, value in first.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(permuted[name], value[order], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        method.encode({})


@every()
def test_samples_follow_the_seed_and_are_samples(cls: type[Method]) -> None:
    method, x = build(cls).eval(), batch()
    given = {"photo": x["photo"], "caption": x["caption"]}
    with torch.no_grad():
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            cross = method.cross_generate(given, ["sketch", "photo"])
            draws.append((method.joint_generate(3)["photo"], cross["sketch"], cross["photo"]))
    for first, same, other in zip(*draws, strict=True):
        assert torch.equal(first, same) and not torch.equal(first, other)
    assert not torch.equal(draws[0][2], x["photo"])  # a given target is reconstructed, never copied
    with pytest.raises(ValueError, match="no sampler"):
        method.joint_generate(1, sampler="gibbs")


@every()
def test_gradients_reach_what_the_table_says(cls: type[Method]) -> None:
    method, x = build(cls), batch()
    groups = method.param_groups()
    members = [p for g in groups.values() for p in g.params]
    assert len({id(p) for p in members}) == len(members) == len(list(method.parameters()))
    for stage in method.stages:
        loss = method(x, Progress(stage.name, 0, 10))
        assert set(loss.parts) == set(method.gradients[stage.name])
        torch.testing.assert_close(loss.total, sum(loss.parts.values()))
        for name, part in loss.parts.items():
            flows = torch.autograd.grad(part, members, retain_graph=True, allow_unused=True)
            reached = dict(zip(map(id, members), flows, strict=True))
            for group, content in groups.items():
                got = [reached[id(p)] is not None for p in content.params]
                wanted = group in method.gradients[stage.name][name]
                assert all(got) if wanted else not any(got), f"{stage.name}, {name}, {group}"
    assert sum(s.share for s in method.stages) == pytest.approx(1)


@every()
def test_every_hyper_parameter_does_something(cls: type[Method]) -> None:
    x = batch()
    names = [n for n, p in class_signature(cls)[0].items() if p.kind == p.KEYWORD_ONLY]

    def fingerprint(method: Method) -> str:
        torch.manual_seed(7)
        with torch.no_grad():
            samples = method.joint_generate(2)["photo"].sum().item()
        loss = seeded(method, x)
        gradient = torch.autograd.grad(loss, next(method.encoders.parameters()))[0].abs().sum().item()
        groups = {n: (g.lr, g.betas, g.clip, g.decay, g.amsgrad) for n, g in method.param_groups().items()}
        return repr((samples, loss.item(), gradient, groups, method.stages))

    changes = {
        **CHANGES,
        "family": "normal",
        "likelihood": {"laplace": "gaussian", "gaussian": "laplace"}.get(
            class_signature(cls)[0]["likelihood"].default
        ),
        "amsgrad": "amsgrad" in names and not class_signature(cls)[0]["amsgrad"].default,
        "estimator": "dreg",
    }
    base = fingerprint(build(cls))
    assert fingerprint(build(cls)) == base
    idle = [name for name in names if fingerprint(build(cls, **{name: changes[name]})) == base]
    assert not idle
    parents = [c for c in cls.__mro__ if issubclass(c, MultimodalVAE)]
    assert all(name in "".join(inspect.getdoc(c) or "" for c in parents) for name in names)


@every()
def test_learns(cls: type[Method]) -> None:
    """Twenty steps on one batch: the bound rises, for the pictures as for the caption."""
    method, x = build(cls, lr=3e-3, beta=1.0), batch(8)
    # Noise around mid-grey, where decoders start, would leave nothing to learn: one striped dark picture.
    for name in ("photo", "sketch"):
        x[name] = torch.zeros_like(x[name])
        x[name][..., ::3] = 0.2
    x["caption"] = torch.tensor([1, 5, 3, 3, 2, 1]).expand(8, 6)
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    with torch.no_grad():
        before = seeded(method, x)
        words = method.joint_generate(32)["caption"]
    for _ in range(20):
        optimiser.zero_grad()
        method(x, NOW).total.backward()
        optimiser.step()
    with torch.no_grad():
        assert seeded(method, x) < before - 50
        after = method.joint_generate(32)["caption"]
    share = [(w == x["caption"][0]).float().mean() for w in (words, after)]
    assert share[1] > share[0]


@every()
def test_bf16_autocast_stays_finite_and_close(cls: type[Method]) -> None:
    method, x = build(cls), batch()
    exact = seeded(method, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = seeded(method, x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    rough.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@every()
def test_state_dict_restores_the_method(cls: type[Method]) -> None:
    first, second = build(cls, seed=0), build(cls, seed=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(seeded(first, batch()), seeded(second, batch()))


@every()
def test_no_position_in_the_batch_is_special(cls: type[Method]) -> None:
    """Two halves of different examples, in either order: a component tied to a position would show."""
    method, x = build(cls), batch(2)
    one = {n: t[:1].expand(600, *t.shape[1:]) for n, t in x.items()}
    other = {n: t[1:].expand(600, *t.shape[1:]) for n, t in x.items()}
    both = {n: torch.cat([one[n], other[n]]) for n in x}
    swapped = {n: torch.cat([other[n], one[n]]) for n in x}
    with torch.no_grad():
        losses = [seeded(method, b, seed).item() for b, seed in ((both, 0), (swapped, 1))]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@every()
def test_one_modality_is_enough(cls: type[Method]) -> None:
    from datasets.spec import DataSpec

    small = {"latent": 4, "network": "cnn", "width": 8}
    method = cls(DataSpec((SPEC["sketch"],)), **small)
    assert method({"sketch": batch()["sketch"]}, NOW).total.isfinite()


@every()
def test_impossible_settings_are_named(cls: type[Method]) -> None:
    cases = {"latent": 0, "likelihood": "cauchy", "likelihood_scale": 0.0, "network": "vit", "samples": 0}
    cases |= {"correlation": 1.0, "decoded": 8}
    cases |= {"private": 0, "family": "cauchy", "estimator": "vimco", "energy_start": 1.5, "prior_steps": -1}
    cases |= {"anneal": 1.5, "random_subsets": 4, "prior_weight": -0.1, "alpha": 1.1}
    accepted = class_signature(cls)[0]
    for name, value in cases.items():
        if name in accepted:
            with pytest.raises(UserError, match=name.replace("prior_steps", "prior chain")):
                build(cls, **{name: value})


@every()
def test_it_says_whom_it_transcribes(cls: type[Method]) -> None:
    assert cls.citation and "METHODS.md 2." in inspect.getdoc(cls)
    assert cls.unsupported(SPEC, "joint") is None
    assert (cls.unsupported(SPEC, "chain") is None) == ("prior" in cls.chains)
