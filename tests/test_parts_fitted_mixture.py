"""The fitted mixture: how it is found, EM step by step, density, draws, and its place in `ours`."""

from __future__ import annotations

import copy

import pytest
import torch
from cooperative_support import SMALL
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from bench.costing import step_cost
from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.indep_generators import IndepGenerators
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts import fitted_mixture
from methods.parts.fitted_mixture import DECAY, JITTER, FittedMixture

SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(2)))
CENTRES = torch.tensor([[-6.0, 0.0, 0.0], [6.0, 0.0, 3.0], [0.0, 8.0, 0.0]])
SCALES = torch.tensor([0.3, 1.0, 2.0])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_mixture, "RECENT", 600)


def draws(n: int, shift: float = 0.0) -> torch.Tensor:
    """From three normals of equal share."""
    of = torch.arange(n) % 3
    return CENTRES[of] + shift + SCALES[of, None] * torch.randn(n, 3)


def fitted(batches: int = 300) -> FittedMixture:
    torch.manual_seed(0)
    prior = FittedMixture(3, 3)
    for _ in range(batches):
        prior.track(draws(60))
        prior.settle()
    return prior


def reference(prior: FittedMixture) -> MixtureSameFamily:
    each = MultivariateNormal(prior.means, scale_tril=prior.roots)
    return MixtureSameFamily(Categorical(logits=prior.log_share), each)


def test_it_is_standard_until_there_are_draws_enough() -> None:
    prior, z = FittedMixture(3, 4), torch.randn(5, 3)
    standard = MultivariateNormal(torch.zeros(3), torch.eye(3))
    for _ in range(9):
        prior.track(draws(60))
        prior.settle()
        torch.testing.assert_close(prior.log_prob(z), standard.log_prob(z))
        assert not prior.found
    prior.track(draws(60))
    prior.settle()
    assert prior.found and (prior.log_prob(z) - standard.log_prob(z)).abs().max() > 1


def test_components_are_found_and_followed() -> None:
    prior = fitted()
    order = [int((prior.means - centre).norm(dim=1).argmin()) for centre in CENTRES]
    assert sorted(order) == [0, 1, 2]
    torch.testing.assert_close(prior.means[order], CENTRES, atol=0.15, rtol=0)
    torch.testing.assert_close(prior.log_share.exp(), torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    spread = prior.roots[order].diagonal(dim1=1, dim2=2)
    # Three draws' worth of the mean covariance in 2,000: the narrowest component shows it most.
    torch.testing.assert_close(spread, SCALES[:, None].expand(3, 3), atol=0.15, rtol=0)
    for step in range(1200):
        prior.track(draws(60, shift=min(4.0, step / 150)))  # slowly, then no further
        prior.settle()
    torch.testing.assert_close(prior.means[order], CENTRES + 4, atol=0.2, rtol=0)


def test_density_and_draws_are_those_of_torchs_mixture() -> None:
    prior = fitted()
    z = torch.cat([draws(30), 5 * torch.randn(5, 3)])
    torch.testing.assert_close(prior.log_prob(z), reference(prior).log_prob(z), atol=1e-4, rtol=1e-4)
    several = z.view(5, 7, 3)
    torch.testing.assert_close(prior.log_prob(several), prior.log_prob(z).view(5, 7))
    drawn, theirs = prior.sample(100_000), reference(prior).sample((100_000,))
    torch.testing.assert_close(drawn.mean(0), prior.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(theirs.T), atol=0.3, rtol=0.03)
    near = [(torch.cdist(each, CENTRES).argmin(1)).bincount() / 100_000 for each in (drawn, theirs)]
    torch.testing.assert_close(near[0], near[1], atol=0.01, rtol=0)


def test_the_slope_is_that_of_the_density() -> None:
    prior = fitted()
    z = (2 * torch.randn(6, 3)).requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    (theirs,) = torch.autograd.grad(reference(prior).log_prob(z).sum(), z)
    torch.testing.assert_close(slope, theirs, atol=1e-3, rtol=1e-3)


def test_one_settling_is_an_em_step_on_the_weighted_draws() -> None:
    prior = fitted(40)
    before = copy.deepcopy(prior)
    z = draws(90)
    prior.track(z)
    prior.settle()
    p = before.log_joint(z).softmax(1).double()
    weight = DECAY * before.weight + p.sum(0)
    mean = (DECAY * before.sum + p.T @ z.double()) / weight[:, None]
    second = DECAY * before.products + torch.stack(
        [(p[:, k, None] * z).T.double() @ z.double() for k in range(3)]
    )
    within = second / weight[:, None, None] - mean[:, :, None] * mean[:, None]
    pooled = (weight[:, None, None] * within).sum(0) / weight.sum()
    covariance = (weight[:, None, None] * within + 3 * pooled) / (weight[:, None, None] + 3)
    torch.testing.assert_close(prior.means.double(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        (prior.roots @ prior.roots.mT).double() - JITTER * torch.eye(3), covariance, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(prior.log_share.exp().double(), weight / weight.sum())


def test_em_does_not_make_the_draws_less_likely() -> None:
    prior = fitted(30)
    torch.manual_seed(1)
    z = draws(3000, shift=1.0)
    likely = []
    for _ in range(200):
        likely.append(float(prior.log_prob(z).mean()))
        prior.track(z)
        prior.settle()
    assert (
        likely[-1] > likely[0] + 0.2 and min(b - a for a, b in zip(likely, likely[1:], strict=False)) > -0.02
    )
    assert likely[-1] > float(MultivariateNormal(z.mean(0), torch.cov(z.T)).log_prob(z).mean()) + 1, (
        "more likely than under one normal"
    )


def test_a_component_that_nothing_belongs_to_stays_where_it_was() -> None:
    prior = fitted(40)
    order = [int((prior.means - centre).norm(dim=1).argmin()) for centre in CENTRES]
    before = prior.means.clone()
    torch.manual_seed(2)
    for _ in range(3500):
        prior.track(CENTRES[0] + 0.3 * torch.randn(60, 3))
        prior.settle()
    assert float(prior.terms()["prior_components"]) == pytest.approx(1, abs=1e-3)
    assert prior.weight[order[1]] < 1e-9 and prior.weight[order[2]] < 1e-9
    torch.testing.assert_close(prior.means[order[1:]], before[order[1:]], atol=0.5, rtol=0)
    assert bool(torch.isfinite(prior.log_prob(draws(50))).all())
    assert (prior.sample(1000) - CENTRES[0]).norm(dim=1).max() < 3


def test_draws_that_do_not_vary_are_no_trouble() -> None:
    prior = FittedMixture(4, 3)
    for _ in range(50):
        prior.track(torch.full((60, 4), 2.0))
        prior.settle()
    assert prior.found
    torch.testing.assert_close(prior.sample(20), torch.full((20, 4), 2.0), atol=0.05, rtol=0)


def test_bf16_changes_nothing() -> None:
    usual, z = fitted(40), draws(20)
    mixed = copy.deepcopy(usual)
    more = draws(60)
    usual.track(more)
    usual.settle()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.track(more)
        mixed.settle()
        assert mixed.log_prob(z).dtype == mixed.sample(2).dtype == torch.float32
        torch.testing.assert_close(mixed.log_prob(z), usual.log_prob(z))
        assert mixed.mean.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_components_are_found_whatever_the_unit(scale: float) -> None:
    torch.manual_seed(0)
    prior = FittedMixture(3, 3)
    for _ in range(12):
        prior.track(draws(60) * scale)
        prior.settle()
    order = [int((prior.means / scale - centre).norm(dim=1).argmin()) for centre in CENTRES]
    assert sorted(order) == [0, 1, 2]


def test_the_numbers_of_a_mixture_are_those_that_are_free() -> None:
    assert [n for _, n in FittedMixture(4, 3).numbers] == [2, 12, 30]


def test_a_stored_mixture_goes_on_where_it_was() -> None:
    prior, other = fitted(40), FittedMixture(3, 3)
    other.load_state_dict(prior.state_dict())
    assert other.found
    for each in (prior, other):
        torch.manual_seed(9)
        each.track(draws(60))
        each.settle()
    assert all(
        torch.equal(a, b)
        for a, b in zip(prior.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_going_back_to_a_state_without_components_finds_them_anew() -> None:
    """As the harness does, which tries a step of every stage before it trains."""
    prior = FittedMixture(3, 3)
    before = copy.deepcopy(prior.state_dict())
    for _ in range(12):
        prior.track(draws(60))
        prior.settle()
    assert prior.found
    prior.load_state_dict(before)
    assert not prior.found
    for _ in range(12):
        prior.track(draws(60))
        prior.settle()
    assert torch.cdist(prior.means, prior.means).sum() > 1, "components differ"


def test_found_anew_it_leaves_where_em_is_stuck() -> None:
    """Draws that jump far fall to the component that is nearest, and stay there step by step."""
    prior, there = fitted(40), CENTRES + 60
    for _ in range(1200):
        prior.track(draws(60, shift=60.0))
        prior.settle()
    stuck, z = copy.deepcopy(prior), draws(3000, shift=60.0)
    assert float(stuck.terms()["prior_components"]) < 1.1
    prior.settle(anew=True)
    order = [int((prior.means - centre).norm(dim=1).argmin()) for centre in there]
    assert sorted(order) == [0, 1, 2]
    assert prior.log_prob(z).mean() > stuck.log_prob(z).mean() + 1
    assert float(prior.weight.sum()) == pytest.approx(600), "the sums are those of the latest draws"


@pytest.mark.parametrize("found", [False, True])
def test_draws_that_are_not_finite_find_nothing(found: bool) -> None:
    prior = fitted(40) if found else FittedMixture(3, 3)
    before = prior.means.clone()
    prior.recent.copy_(draws(600))
    prior.recent[5, 1] = torch.nan
    prior.seen.fill_(600)
    prior.settle(anew=True)
    assert prior.found == found
    torch.testing.assert_close(prior.means, before, atol=1e-4, rtol=1e-4)


# -- in `ours`


def batch(n: int = 64, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(n, *m.shape, generator=generator) for m in SPEC}


@pytest.mark.parametrize("cls", [Ours, OursW, IndepGenerators])
def test_ours_fits_a_mixture_and_draws_from_it(cls) -> None:
    torch.manual_seed(0)
    extra = {"private": 2} if cls is OursW else {}
    method = cls(SPEC, **{**SMALL, **extra, "fit_prior": True, "prior_components": 3})
    with torch.no_grad():
        for encoder in method.encoders.values():
            encoder.towers[0].location.bias.add_(3.0)
    for step in range(30):
        method(batch(), Progress("revision", step, 40))
    method.priors.settle()
    for block in [block for block in method.prior_draw(4) if block.startswith("z")]:
        prior = method.priors.of(block)
        assert isinstance(prior, FittedMixture) and prior.found
        assert (method.prior_sample(block, 2000, method.latent).mean(0) > 1.5).all(), block
        z = torch.randn(5, method.latent) + 3
        torch.testing.assert_close(
            method.log_prior({block: z}), reference(prior).log_prob(z), atol=1e-2, rtol=1e-3
        )
        assert torch.equal(method.prior_mean(block, z), prior.mean.expand(5, -1))


def test_the_vae_part_alone_finds_its_components_in_its_last_step() -> None:
    torch.manual_seed(0)
    method = Ours(SPEC, **{**SMALL, "fit_prior": True, "prior_components": 3, "warm_start": 1})
    for step in range(8):
        assert not method.priors.of("z").found
        method(batch(), Progress("warm", step, 8)).total.backward()
    assert method.priors.of("z").found


@pytest.mark.parametrize(
    ("renewals", "steps"), [(0, []), (1, [12]), (3, [4, 8, 12]), (50, list(range(1, 13)))]
)
def test_components_are_found_anew_so_often(monkeypatch, renewals: int, steps: list[int]) -> None:
    """In equal parts of the revision, the last time after its last step; once at its start in any case."""
    torch.manual_seed(0)
    settings = {"fit_prior": True, "prior_components": 3, "inference_on_bound": 0.1}
    method = Ours(SPEC, **{**SMALL, **settings, "prior_renewals": renewals})
    prior, found, now = method.priors.of("z"), [], [0]
    prior.track(torch.randn(600, method.latent))
    find = prior._find
    monkeypatch.setattr(prior, "_find", lambda: (found.append(now[0]), find()))
    for step in range(12):
        now[0] = step
        loss = method(batch(), Progress("revision", step, 12))
        loss.total.backward()
        if step == 11 and renewals:
            assert found.pop() == 11  # in the same step, after the chains
            found.append(12)
        assert bool(torch.isfinite(loss.total))
    assert found == [0, *steps]


def test_a_measured_step_fits_no_prior(monkeypatch) -> None:
    """What ends a stage is not what a step costs."""
    torch.manual_seed(0)
    settings = {"fit_prior": True, "prior_components": 3, "prior_renewals": 5}
    method = Ours(SPEC, **{**SMALL, **settings})
    prior = method.priors.of("z")
    prior.track(torch.randn(600, method.latent))
    method(batch(), Progress("revision", 0, 10))
    monkeypatch.setattr(prior, "_find", lambda: pytest.fail("components were found in a measured step"))
    assert step_cost(method, batch()).flops > 0
    with pytest.raises(pytest.fail.Exception, match="components"):
        method(batch(), Progress("revision", 9, 10))


@pytest.mark.parametrize("settings", [{}, {"fit_prior": True}])
def test_only_mixtures_are_found_anew(settings: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="prior_renewals"):
        Ours(SPEC, **{**SMALL, **settings, "prior_renewals": 2})


def test_without_a_fit_the_number_of_components_means_nothing() -> None:
    method = Ours(SPEC, **{**SMALL, "prior_components": 3})
    assert not method.priors.blocks and method.priors.of("z") is None


@pytest.mark.parametrize("components", [0, -2])
def test_a_mixture_has_components(components: int) -> None:
    with pytest.raises(ValueError, match="prior_components"):
        Ours(SPEC, **{**SMALL, "fit_prior": True, "prior_components": components})
