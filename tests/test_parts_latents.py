"""Diagonal experts, scales of the two lineages, priors: against torch.distributions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace, Normal

from datasets.spec import DataSpec, Modality, UserError
from methods.parts.latents import Diagonal, ExpertEncoder, check_family, diagonal, scale_of
from methods.parts.priors import Prior, auxiliary_priors, cross_private

DIGIT = Modality("m0", "image", (3, 28, 28))


@pytest.mark.parametrize(("laplace", "reference"), [(True, Laplace), (False, Normal)])
def test_log_density_and_moments(laplace: bool, reference: type) -> None:
    torch.manual_seed(0)
    location, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.2
    q = Diagonal(location, scale, laplace)
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), reference(location, scale).log_prob(z).sum(-1))
    n = 100_000
    u = (q.rsample(n) - location) / scale
    assert u.mean(0).abs().max() < 5 * math.sqrt((2 if laplace else 1) / n)
    # E u^2 is 2 for Laplace and 1 for normal, E |u| is 1 and sqrt(2 / pi): the pair tells the two apart.
    torch.testing.assert_close(
        u.square().mean(), torch.tensor(2.0 if laplace else 1.0).double(), rtol=0.02, atol=0
    )
    first = 1.0 if laplace else math.sqrt(2 / math.pi)
    torch.testing.assert_close(u.abs().mean(), torch.tensor(first).double(), rtol=0.01, atol=0)


def test_samples_carry_gradient_and_stopped_ones_do_not() -> None:
    raw = torch.zeros(2, 3, requires_grad=True)
    q = diagonal(raw, raw, "gaussian")
    assert q.rsample(2).requires_grad and not q.detach().rsample(2).requires_grad
    assert not q.detach().log_prob(torch.zeros(2, 3)).requires_grad


def test_scales_of_the_lineages() -> None:
    raw = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(
        scale_of(raw, "laplace").sum(-1), torch.full((6,), 5.0).double(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(scale_of(raw, "normal"), torch.log1p(raw.exp()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale_of(raw, "gaussian"), (raw / 2).exp())
    zero = torch.zeros(1, 7)
    assert scale_of(zero, "laplace").max() == pytest.approx(1, abs=1e-5)
    assert scale_of(zero, "normal").max() == pytest.approx(math.log(2), abs=1e-5)
    assert scale_of(zero, "gaussian").max() == 1


@pytest.mark.parametrize("family", ["laplace", "normal", "gaussian"])
def test_extreme_outputs_stay_finite(family: str) -> None:
    raw = torch.tensor([[-300.0, 0.0, 300.0]], requires_grad=True)
    q = diagonal(torch.zeros(1, 3), raw, family)
    log = q.log_prob(torch.ones(1, 3))
    log.sum().backward()
    assert log.isfinite().all() and raw.grad.isfinite().all()


def test_half_precision_outputs_are_promoted() -> None:
    q = diagonal(torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16), "laplace")
    assert q.location.dtype == q.scale.dtype == torch.float32


@pytest.mark.parametrize(("network", "towers"), [("cnn", 1), ("resnet", 2)])
def test_private_and_shared_blocks(network: str, towers: int) -> None:
    torch.manual_seed(0)
    encoder = ExpertEncoder(DIGIT, 5, 2, "laplace", network, 4)
    expert = encoder(torch.rand(3, 3, 28, 28))
    assert len(encoder.towers) == towers
    assert expert.z.location.shape == (3, 5) and expert.w.location.shape == (3, 2)
    # Each block has its own softmax, so its scales sum to its own size.
    torch.testing.assert_close(expert.z.scale.sum(-1), torch.full((3,), 5.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(expert.w.scale.sum(-1), torch.full((3,), 2.0), rtol=1e-4, atol=0)
    expert.z.location.sum().backward()
    touched = [
        any(p.grad is not None and p.grad.any() for p in tower.parameters()) for tower in encoder.towers
    ]
    assert touched == ([True] if towers == 1 else [False, True])


def test_unknown_family_is_named() -> None:
    with pytest.raises(UserError, match="family 'cauchy'"):
        check_family("cauchy")


def test_priors() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 4)
    reference = {
        "laplace": Laplace(0.0, 1.0),
        "gaussian": Normal(0.0, 1.0),
        "normal": Normal(0.0, math.log(2)),
    }
    for family, p in reference.items():
        torch.testing.assert_close(Prior(4, family).log_prob(z), p.log_prob(z).sum(-1), rtol=1e-4, atol=1e-4)
        assert not list(Prior(4, family).parameters())
    learned = Prior(4, "laplace", learn=True)
    learned.log_prob(z).sum().backward()
    assert learned.raw.grad.abs().sum() > 0
    learned.raw.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    draws = learned.rsample(20_000).abs().mean(0)
    torch.testing.assert_close(draws, 4 * learned.raw.detach().softmax(0), rtol=0.05, atol=0)


def test_cross_private_takes_the_own_latent_only_on_the_diagonal() -> None:
    spec = DataSpec(tuple(Modality(f"m{i}", "image", (1, 8, 8)) for i in range(3)))
    auxiliaries = auxiliary_priors(spec, 4, "laplace")
    own = torch.full((3, 2, 5, 4), 100.0)
    filled = cross_private(own, auxiliaries)
    assert list(filled) == ["m0", "m1", "m2"]
    for n, name in enumerate(filled):
        for m in range(3):
            assert (filled[name][m] == 100).all() == (m == n)
    fillers = torch.stack([filled["m0"][1], filled["m0"][2], filled["m1"][0], filled["m1"][2]])
    assert len(fillers.unique()) == fillers.numel()  # nothing is drawn once and used twice
    filled["m1"].sum().backward()
    assert auxiliaries["m1"].raw.grad is not None and auxiliaries["m0"].raw.grad is None
