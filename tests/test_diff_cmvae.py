"""Diff-CMVAE: two stages, drafts of both kinds, the noise regression written out, honest counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vae_support import SPEC, batch, build

from bench.build import Initial
from bench.optimise import only, stage_groups
from datasets.spec import DataSpec, Modality, UserError
from methods.base import Progress
from methods.cmvae import CMVAE
from methods.diff_cmvae import DiffCMVAE
from methods.parts.diffusion import strided
from methods.parts.latents import Diagonal, Expert

VAE, DIFFUSION = Progress("cmvae", 0, 10), Progress("diffusion", 0, 10)
SMALL = {"diffusion_width": 8, "diffusion_blocks": 1, "diffusion_steps": 3}
ABAR = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()


def make(seed: int = 0, **hyper) -> DiffCMVAE:
    return build(DiffCMVAE, seed, clusters=3, **{**SMALL, **hyper})


def test_first_stage_is_the_cmvae_alone() -> None:
    method, plain, x = make(), build(CMVAE, clusters=3), batch()
    plain.load_state_dict(method.cmvae.state_dict())
    torch.manual_seed(0)
    loss = method(x, VAE)
    torch.manual_seed(0)
    assert torch.equal(loss.total, plain(x, VAE).total)
    first, second = method.stages
    assert set(first.groups) == {"generator", "inference", "prior"} and second.groups == ("diffusion",)
    assert first.share + second.share == 1
    loss.total.backward()
    assert all(p.grad is None for p in method.unets.parameters())


def test_second_stage_trains_the_unets_alone() -> None:
    method, x = make().train(), batch()
    before = {n: t.clone() for n, t in method.cmvae.state_dict().items()}
    method(x, DIFFUSION).total.backward()
    assert all(p.grad is None and p.requires_grad for p in method.cmvae.parameters())
    assert all(p.grad is not None for p in method.unets.parameters())
    assert method.cmvae.training
    assert all(torch.equal(t, before[n]) for n, t in method.cmvae.state_dict().items())
    with only(method, stage_groups(method, method.stages[1]).values()):
        assert method(x, DIFFUSION).total.requires_grad


@pytest.mark.parametrize("output", ["noise", "velocity"])
def test_loss_is_the_noise_regression_beside_the_draft(output: str) -> None:
    method, x = make(diffusion_dropout=0.0, diffusion_output=output), batch()
    torch.manual_seed(2)
    loss = method(x, DIFFUSION)
    torch.manual_seed(2)
    drafts, wanted = method.drafts(x), 0.0
    assert drafts.keys() == {"photo", "sketch"}
    for key, names in (("3x12x12", ["photo"]), ("1x12x16", ["sketch"])):
        kind = torch.randint(1, (6,))
        target, draft = 2 * x[names[0]] - 1, (2 * drafts[names[0]] - 1).clamp(-1, 1)
        t, eps = torch.randint(1000, (6,)), torch.randn_like(target)
        abar = ABAR[t].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * target + (1 - abar).sqrt() * eps
        noise = method.unets[key](noisy, t, draft, kind)
        if output == "velocity":
            noise = (1 - abar).sqrt() * (noisy - abar.sqrt() * draft) + abar.sqrt() * noise
        wanted = wanted + (eps - noise).square().mean()
    torch.testing.assert_close(loss.total, wanted, rtol=1e-4, atol=1e-5)
    assert loss.parts.keys() == {"total"} and len(loss.terms) == 2


def test_every_example_has_its_own_target_picture() -> None:
    spec = DataSpec(tuple(Modality(n, "image", (3, 12, 12)) for n in "abc"))
    torch.manual_seed(0)
    method = DiffCMVAE(spec, latent=4, private=3, network="cnn", width=8, **SMALL)
    assert list(method.unets) == ["3x12x12"]  # one network for pictures of one shape, told which they are
    x = {n: torch.full((400, 3, 12, 12), v) for n, v in zip("abc", (0.1, 0.5, 0.9), strict=True)}
    method.drafts = lambda x: {n: t + 0.05 for n, t in x.items()}
    seen = {}

    def spy(noisy: torch.Tensor, t: torch.Tensor, r: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        seen.update(r=(r.mean((1, 2, 3)) + 1) / 2, kind=kind)
        return method.unets["3x12x12"].net.conv_out.bias.sum() + noisy

    method.unets["3x12x12"].forward = spy
    method(x, DIFFUSION)
    torch.testing.assert_close(seen["r"], torch.tensor([0.15, 0.55, 0.95])[seen["kind"]])
    share = torch.bincount(seen["kind"], minlength=3) / 400
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.08)


def test_drafts_are_self_and_cross_reconstructions() -> None:
    """z of one random expert; the private latent inferred for its own modality, from the prior for others."""
    method, n, seen = make(), 600, {}
    experts = {
        name: Expert(
            Diagonal(torch.full((n, 4), float(i)), torch.full((n, 4), 1e-6)),
            Diagonal(torch.full((n, 3), 100.0 + i), torch.full((n, 3), 1e-6)),
        )
        for i, name in enumerate(SPEC.names)
    }
    method.cmvae.experts = lambda x: experts
    method.cmvae.decode = lambda latent, targets: seen.update(latent) or {}
    method.drafts(batch())
    source = seen["z"].mean(1).round().long()
    share = torch.bincount(source, minlength=3) / n
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.07)
    for i, name in enumerate(SPEC.names):
        inferred = (seen[f"w.{name}"] - 100 - i).abs().amax(1) < 0.01
        assert torch.equal(inferred, source == i)
        assert len(seen[f"w.{name}"][source != i].unique()) > 500  # the others are draws, one each


def test_ancestral_samples_are_those_of_the_cmvae() -> None:
    method, x = make().eval(), batch()
    given = {"caption": x["caption"], "photo": x["photo"]}
    with torch.no_grad():
        pairs = []
        for model, how in ((method, {"sampler": "ancestral"}), (method.cmvae, {})):
            torch.manual_seed(1)
            pairs.append(model.joint_generate(3, **how) | model.cross_generate(given, SPEC.names, **how))
        assert all(torch.equal(pairs[0][n], pairs[1][n]) for n in SPEC.names)
        torch.manual_seed(1)
        refined = method.joint_generate(3)
        torch.manual_seed(1)
        unrefined = method.joint_generate(3, steps=0)
    torch.manual_seed(1)
    draft = method.joint_generate(3, "ancestral")
    assert torch.equal(refined["caption"], draft["caption"])  # text is not refined
    for name in ("photo", "sketch"):
        assert torch.equal(unrefined[name], draft[name]) and not torch.equal(refined[name], draft[name])
        assert refined[name].min() >= 0 and refined[name].max() <= 1


def test_evaluations_of_the_unet_are_those_it_says() -> None:
    method, x, seen = make(diffusion_steps=5).eval(), batch(), []
    for unet in method.unets.values():
        unet.register_forward_hook(lambda _, args, __: seen.append(int(args[1][0])))
    with torch.no_grad():
        for steps in (None, 2):
            seen.clear()
            method.cross_generate({"photo": x["photo"]}, ["sketch"], steps=steps)
            assert seen == strided(steps or 5)
            assert method.nfe("diffusion", "cross", steps) == 1 + len(seen)
        seen.clear()
        method.cross_generate({"photo": x["photo"]}, ["sketch"], "ancestral", steps=4)
        assert not seen and method.nfe("ancestral", "cross", 4) == 1
    paper = make(diffusion_steps=250)
    assert paper.nfe(None, "joint") == paper.nfe("diffusion", "joint") == 251


def test_latents_are_the_cmvaes() -> None:
    method, x = make().eval(), batch()
    for name, value in method.encode({"sketch": x["sketch"]}).items():
        assert torch.equal(value, method.cmvae.encode({"sketch": x["sketch"]})[name])
    latent = method.sample_prior(4)
    assert torch.equal(
        method.decode(latent, ["photo"])["photo"], method.cmvae.decode(latent, ["photo"])["photo"]
    )


def test_a_finished_cmvae_run_can_stand_in_for_the_first_stage(tmp_path) -> None:
    from safetensors.torch import save_file

    source, method = build(CMVAE, seed=7, clusters=3), make()
    with torch.no_grad():
        source.auxiliaries["photo"].raw.fill_(0.3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    unets = {n: t.clone() for n, t in method.unets.state_dict().items()}
    Initial(tmp_path / "weights.safetensors", "hash", "abc", 1, ("cmvae",)).load(method)
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in method.cmvae.state_dict().items())
    assert all(torch.equal(t, unets[n]) for n, t in method.unets.state_dict().items())
    with pytest.raises(UserError, match="same networks"):
        Initial(tmp_path / "weights.safetensors", "hash", "abc", 1, ("cmvae",)).load(make(latent=5))


@pytest.mark.parametrize("output", ["noise", "velocity"])
def test_the_regression_learns_to_denoise(output: str) -> None:
    """Two plain pictures: after some steps samples beside their drafts lie nearer to them."""
    method = make(diffusion_dropout=0.0, diffusion_output=output)
    x = {n: t[:1].expand(16, *t.shape[1:]) for n, t in batch().items()}
    x["photo"], x["sketch"] = torch.full((16, 3, 12, 12), 0.9), torch.full((16, 1, 12, 16), 0.1)

    def error() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            out = method.eval().joint_generate(8, steps=10)
        return sum(float((out[n] - x[n][:8]).abs().mean()) for n in ("photo", "sketch"))

    before = error()
    optimiser = torch.optim.Adam(method.unets.parameters(), 5e-3)
    method.train()
    for _ in range(25):
        optimiser.zero_grad()
        method(x, DIFFUSION).total.backward()
        optimiser.step()
    after = error()
    assert after < 0.6 * before, (before, after)


def test_impossible_settings_are_named() -> None:
    for bad in (
        {"diffusion_share": 0.0},
        {"diffusion_share": 1.0},
        {"diffusion_steps": 1001},
        {"diffusion_width": 6},
    ):
        with pytest.raises(UserError, match=next(iter(bad)).replace("diffusion_steps", "diffusion steps")):
            make(**bad)
    words = DataSpec((SPEC["caption"],))
    assert DiffCMVAE.unsupported(words, "joint") and DiffCMVAE.unsupported(SPEC, "joint") is None
    with pytest.raises(UserError, match="pictures"):
        DiffCMVAE(words)
