"""MOE-EBM: both objectives in float64, and its posterior chain against a linear-Gaussian model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Laplace
from vae_support import NOW, SPEC, batch, build, location, seeded

from datasets.spec import DataSpec, Modality, UserError
from methods.base import Progress
from methods.mmvaeplus import MMVAEPlus
from methods.moe_ebm import MoEEBM
from methods.parts.posterior_chain import draw_posterior

WARM = Progress("warmup", 0, 10)


def test_without_energy_it_is_mmvaeplus() -> None:
    x, plus, method = batch(), build(MMVAEPlus), build(MoEEBM)
    for part in ("encoders", "decoders"):
        getattr(method, part).load_state_dict(getattr(plus, part).state_dict())
    torch.testing.assert_close(seeded(method, x, progress=WARM), seeded(plus, x))


@pytest.mark.parametrize("samples", [1, 3])
def test_both_objectives_and_their_gradients_in_float64(samples: int) -> None:
    method = build(MoEEBM, samples=samples, beta=1.7).double()
    x = {n: t.double() if t.is_floating_point() else t for n, t in batch().items()}
    for auxiliary in method.auxiliaries.values():
        auxiliary.raw.data.normal_()
    inferred, negatives = torch.randn(2, 6, 4).double()
    method.posterior = SimpleNamespace(run=lambda *_: inferred)
    method.prior.sample = lambda n: negatives[:n]
    torch.manual_seed(0)
    parts = method(x, NOW).parts

    experts = method.experts(x)
    torch.manual_seed(0)
    z = {n: e.z.rsample(samples) for n, e in experts.items()}
    w = {n: e.w.rsample(samples) for n, e in experts.items()}
    fill = {n: r.rsample(3, samples, 6) for n, r in method.auxiliaries.items()}
    unit, bound = Laplace(torch.tensor(0.0).double(), torch.tensor(1.0 + 1e-6, dtype=torch.float64)), 0.0
    for i, m in enumerate(SPEC.names):
        posterior = torch.stack(
            [Laplace(e.z.location, e.z.scale).log_prob(z[m]).sum(-1) for e in experts.values()]
        )
        own = experts[m].w
        a = unit.log_prob(z[m]).sum(-1) - method.prior.energy(z[m]) + unit.log_prob(w[m]).sum(-1)
        a = a - posterior.exp().mean(0).log() - Laplace(own.location, own.scale).log_prob(w[m]).sum(-1)
        a = 1.7 * a
        for n in SPEC:
            out = location(method, n.name, torch.cat([w[m] if n.name == m else fill[n.name][i], z[m]], -1))
            a = a + method.likelihood(n, x[n.name], out)
        bound = bound + (a.logsumexp(0) - math.log(samples)) / 3
    contrast = method.prior.energy(inferred).mean() - method.prior.energy(negatives).mean()
    torch.testing.assert_close(parts["vae"], -bound.mean(), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(parts["energy"], contrast, rtol=1e-10, atol=1e-10)

    energy = {id(p) for p in method.prior.energy.parameters()}
    networks = {n: p for n, p in method.named_parameters() if id(p) not in energy}
    for part, reference, members in (
        ("vae", -bound.mean(), list(networks.values())),
        ("energy", contrast, list(method.prior.energy.parameters())),
    ):
        ours = torch.autograd.grad(parts[part], members, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(reference, members, retain_graph=True, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10 * float(other.abs().max()))
    # In the bound U is a fixed critic.
    blind = torch.autograd.grad(parts["vae"], list(method.prior.energy.parameters()), allow_unused=True)
    assert all(g is None for g in blind)


def test_descent_lowers_the_energy_where_the_inference_chain_ends() -> None:
    """Positives are the ends of the posterior chain, not its starts: U falls there, and rises elsewhere."""
    method, x = build(MoEEBM), batch(32)
    ends, negatives = torch.full((32, 4), 2.0), torch.full((32, 4), -2.0)
    method.posterior = SimpleNamespace(run=lambda *_: ends)
    method.prior.sample = lambda n: negatives[:n]

    def gap() -> float:
        with torch.no_grad():
            return float(method.prior.energy(ends).mean() - method.prior.energy(negatives).mean())

    before, optimiser = gap(), torch.optim.SGD(method.prior.energy.parameters(), 0.005)
    for _ in range(10):
        optimiser.zero_grad()
        method(x, NOW).parts["energy"].backward()
        optimiser.step()
    assert gap() < before - 0.1


class Affine(nn.Module):
    """A decoder [w, z] -> picture that is linear, so that the posterior is normal."""

    def __init__(self, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.linear = shape, nn.Linear(inputs, math.prod(shape))

    def forward(self, latent: Tensor) -> Tensor:
        return self.linear(latent).unflatten(-1, self.shape)


class Quadratic(nn.Module):
    """U(z) = 0.7 |z - centre|^2 / 2."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre = nn.Parameter(centre)

    def forward(self, z: Tensor) -> Tensor:
        return 0.35 * (z - self.centre).square().sum(-1)


PAIR = DataSpec((Modality("a", "image", (1, 8, 8)), Modality("b", "image", (1, 8, 8))))
SIGMA, CENTRE = 0.6, torch.tensor([0.5, -1.0])


def solved(given: tuple[str, ...], step_size: float) -> tuple[MoEEBM, dict, dict, Tensor, Tensor]:
    """A model whose p(z | x_S, w_S) is N(mean, precision^-1): the method, x_S, w_S, mean, precision."""
    torch.manual_seed(0)
    method = MoEEBM(
        PAIR, latent=2, private=3, family="gaussian", network="cnn", width=8, likelihood="gaussian",
        likelihood_scale=SIGMA, posterior_step_size=step_size, posterior_steps=400, posterior_max_drift=0.0,
    )  # fmt: skip
    method.prior.energy = Quadratic(CENTRE.clone())
    precision, pull = 1.7 * torch.eye(2), 0.7 * CENTRE  # p_0 = N(0, I) tilted by U
    x, private = {}, {}
    for name in PAIR.names:
        method.decoders[name] = Affine(5, (1, 8, 8))
        linear = method.decoders[name].linear
        linear.weight.data.mul_(0.8)
        if name not in given:
            continue
        x[name], private[name] = torch.rand(1, 1, 8, 8), torch.randn(1, 3)
        # The location in [0, 1] is (linear + 1) / 2.
        slope = linear.weight.data[:, 3:] / 2
        rest = (linear.bias.data + linear.weight.data[:, :3] @ private[name][0] + 1) / 2
        precision = precision + slope.T @ slope / SIGMA**2
        pull = pull + slope.T @ (x[name].flatten() - rest) / SIGMA**2
    return method, x, private, torch.linalg.solve(precision, pull), precision


@pytest.mark.parametrize("given", [("a",), ("b",), ("a", "b")])
def test_inference_chain_samples_the_exact_posterior(given: tuple[str, ...]) -> None:
    n, s = 8_000, 0.2
    method, x, private, mean, precision = solved(given, s)
    x = {name: t.expand(n, *t.shape[1:]) for name, t in x.items()}
    private = {name: t.expand(n, -1) for name, t in private.items()}
    torch.manual_seed(1)
    z = method.posterior.run(method, method.prior, 5 * torch.ones(n, 2), private, x, steps=200)
    exact = torch.linalg.inv(precision)
    # Finite steps leave the mean exact and widen the covariance by a known factor.
    widened = torch.linalg.inv(precision @ (torch.eye(2) - 0.25 * s**2 * precision))
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(z.T.cov(), widened, rtol=0, atol=0.05 * float(exact.max()))
    torch.testing.assert_close(z.T.cov(), exact, rtol=0, atol=0.1 * float(exact.max()))


def test_each_step_is_the_langevin_step_on_the_posterior() -> None:
    method, x, private, mean, precision = solved(("a", "b"), 0.3)
    start = torch.tensor([[1.0, -2.0]])
    torch.manual_seed(3)
    z = method.posterior.run(method, method.prior, start, private, x, steps=1)
    torch.manual_seed(3)
    noise = torch.randn(1, 2)
    uphill = (mean - start) @ precision  # grad log posterior, with a plus (the paper's Eqn 9 has a minus)
    torch.testing.assert_close(z, start + 0.045 * uphill + 0.3 * noise, rtol=1e-4, atol=1e-4)


def test_post_ld_refines_what_pre_ld_draws() -> None:
    method, x = build(MoEEBM, posterior_steps=3).eval(), batch()
    given, drawn = {"photo": x["photo"], "caption": x["caption"]}, {}
    with torch.no_grad():
        for sampler, steps in (("pre_ld", None), ("post_ld", 0), ("post_ld", 1), ("post_ld", None)):
            torch.manual_seed(5)
            drawn[sampler, steps] = method.cross_generate(given, ["photo"], sampler, steps)["photo"]
    assert torch.equal(drawn["pre_ld", None], drawn["post_ld", 0])
    assert not torch.equal(drawn["post_ld", 1], drawn["post_ld", 0])
    assert not torch.equal(drawn["post_ld", 1], drawn["post_ld", None])
    with pytest.raises(ValueError, match="pre_ld"):
        method.joint_generate(2, "pre_ld")  # there is no chain to leave out: the prior is the energy's


def test_only_given_modalities_pull_at_the_chain() -> None:
    method, x = build(MoEEBM, posterior_steps=2).eval(), batch()
    z, private = draw_posterior(method, method.experts({"photo": x["photo"]}))
    assert set(private) == {"photo"} and not z.requires_grad
    calls = []
    for name, decoder in method.decoders.items():
        decoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    method.posterior.run(method, method.prior, z, private, {"photo": x["photo"]})
    assert calls == ["photo"] * 2


def test_networks_run_once_a_step_beside_the_chains() -> None:
    method, x, calls = build(MoEEBM, posterior_steps=4, prior_steps=3), batch(), []
    for kind in ("encoders", "decoders"):
        for network in getattr(method, kind).values():
            network.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    method(x, NOW)
    assert calls.count("encoders") == 3 and calls.count("decoders") == 3 * (1 + 4)
    assert all(p.requires_grad for p in method.parameters()) and method.decoders.training


def test_evaluations_are_counted() -> None:
    method = build(MoEEBM, posterior_steps=7, prior_steps=5)
    assert [method.nfe(None, "joint"), method.nfe("post_ld", "joint", 2)] == [6, 3]
    assert [
        method.nfe(None, "cross"),
        method.nfe("post_ld", "cross", 2),
        method.nfe("pre_ld", "cross", 9),
    ] == [8, 3, 1]


def test_chains_are_recorded_with_fixed_private_latents() -> None:
    method, x = build(MoEEBM, posterior_steps=4).eval(), batch()
    seen, decode = [], method.decode
    method.decode = lambda latent, names: seen.append(dict(latent)) or decode(latent, names)
    chain = method.chain("posterior", {"photo": x["photo"]}, 3, every=1)
    assert chain.at == [0, 1, 2, 3, 4] and chain.quantity == "log_likelihood"
    assert chain.values.shape == (5, 3) and set(chain.frames[0]) == set(SPEC.names)
    for name in SPEC.names:
        assert torch.equal(seen[0][f"w.{name}"], seen[-1][f"w.{name}"])
    first = method.log_likelihoods({"photo": x["photo"][:3]}, seen[0]["z"], {"photo": seen[0]["w.photo"]})
    torch.testing.assert_close(chain.values[0], first["photo"].detach())
    assert method.chain("prior", None, 3).quantity == "energy"
    with pytest.raises(ValueError, match="posterior"):
        method.chain("posterior", None, 3)


@pytest.mark.parametrize(
    "bad", [{"posterior_steps": -1}, {"posterior_step_size": 0.0}, {"posterior_max_drift": -1.0}]
)
def test_an_impossible_chain_is_refused(bad: dict) -> None:
    with pytest.raises(UserError, match="posterior"):
        build(MoEEBM, **bad)
