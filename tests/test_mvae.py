"""MVAE: the sum of its ELBOs written out, its subsets, its annealing, what a step costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from vae_support import NOW, SPEC, assert_same_descent, batch, build, exact, log_density, moments, seeded

from datasets.spec import Batch, UserError
from methods.base import Method, Progress
from methods.mvae import MVAE

SINGLES = [(name,) for name in SPEC.names]
PAIRS = [("photo", "sketch"), ("photo", "caption"), ("sketch", "caption")]


def elbo(method: Method, x: Batch, subset: tuple[str, ...], noise: Tensor, beta: float) -> Tensor:
    """ELBO(X_S), from the formula."""
    experts = moments(method, x)
    precision = 1 + sum(1 / experts[n][1] for n in subset)
    q = Normal(sum(experts[n][0] / experts[n][1] for n in subset) / precision, precision**-0.5)
    z = q.mean + q.stddev * noise
    kl = kl_divergence(q, Normal(torch.zeros_like(z), torch.ones_like(z))).sum(-1)
    return sum(log_density(method, x, n, z) for n in subset) - beta * kl


@pytest.mark.parametrize("pairs", [0, 2, 3])
def test_loss_is_the_papers_sum_of_elbos(pairs: int) -> None:
    method, x = build(MVAE, beta=0.7, random_subsets=pairs).double(), exact(batch())
    loss = seeded(method, x)
    torch.manual_seed(0)
    drawn = [PAIRS[i] for i in torch.randperm(3)[:pairs]]
    subsets = [SPEC.names, *SINGLES, *drawn]
    noise = torch.randn(len(subsets), 6, 4, dtype=torch.float64)
    reference = -sum(elbo(method, x, s, e, 0.7) for s, e in zip(subsets, noise, strict=True)).mean()
    assert_same_descent(method, loss, reference)


def test_the_bound_that_is_logged_is_that_of_the_full_set() -> None:
    method, x = build(MVAE, beta=1.0).double(), exact(batch())
    torch.manual_seed(0)
    loss = method(x, NOW)
    torch.manual_seed(0)
    torch.randperm(3)
    full = elbo(method, x, SPEC.names, torch.randn(4, 6, 4, dtype=torch.float64)[0], 1.0).mean()
    torch.testing.assert_close(loss.terms["bound"], full.detach())
    torch.testing.assert_close(-loss.total.detach(), loss.terms["bound"] + loss.terms["bound_subsets"])
    torch.testing.assert_close(loss.terms["log_likelihood"] - loss.terms["kl"], full.detach())


def test_random_subsets_are_intermediate_distinct_and_new_at_every_step() -> None:
    method, x = build(MVAE, random_subsets=2), batch()
    seen, calls = [], Counter()
    for name, decoder in method.decoders.items():
        decoder.register_forward_pre_hook(lambda _, args, name=name: calls.update({name: len(args[0])}))
    for step in range(30):
        calls.clear()
        method(x, Progress("train", step, 30))
        # Full set, singleton and the drawn pairs: a modality is in one of two distinct pairs or in both.
        assert sorted(calls.values()) == [3, 3, 4]
        seen.append(max(calls, key=calls.get))
    assert set(seen) == set(SPEC.names)


def test_networks_run_once_per_modality_and_step() -> None:
    method, calls = build(MVAE, random_subsets=3), Counter()
    for kind in ("encoders", "decoders"):
        for name, network in getattr(method, kind).items():
            network.register_forward_hook(lambda *_, key=(kind, name): calls.update([key]))
    method(batch(), NOW)
    assert len(calls) == 6 and set(calls.values()) == {1}


def test_beta_rises_during_the_annealed_share_only() -> None:
    method = build(MVAE, beta=2.0, anneal=0.5)
    at = [method.beta_now(Progress("train", step, 100)) for step in (0, 25, 50, 99)]
    assert at == [0.0, 1.0, 2.0, 2.0]
    assert build(MVAE, beta=2.0).beta_now(Progress("train", 0, 100)) == 2.0
    x = batch()
    cold, free = build(MVAE, anneal=1.0), build(MVAE, beta=0.0)
    torch.testing.assert_close(seeded(cold, x), seeded(free, x))


def test_every_posterior_is_the_product_with_the_prior_expert() -> None:
    method, x = build(MVAE).eval().double(), exact(batch())
    for given in (*SINGLES, *PAIRS, SPEC.names):
        experts = {n: moments(method, x)[n] for n in given}
        precision = 1 + sum(1 / v for _, v in experts.values())
        mean = sum(m / v for m, v in experts.values()) / precision
        torch.testing.assert_close(method.encode({n: x[n] for n in given})["z"], mean)
        torch.manual_seed(0)
        found = {n: e.z for n, e in method.experts({n: x[n] for n in given}).items()}
        z = torch.stack([method.posterior_sample(found) for _ in range(2000)])
        torch.testing.assert_close(z.mean(0), mean, atol=0.12, rtol=0)
        torch.testing.assert_close(z.std(0), precision**-0.5, rtol=0.1, atol=0)


def test_too_many_random_subsets_are_refused_with_the_number_there_are() -> None:
    with pytest.raises(UserError, match="3 modalities have 3 subsets between one and all; give 0 to 3"):
        build(MVAE, random_subsets=4)
    with pytest.raises(UserError, match="random_subsets=-1"):
        build(MVAE, random_subsets=-1)


def test_one_modality_has_one_elbo() -> None:
    from datasets.spec import DataSpec

    method = MVAE(DataSpec((SPEC["sketch"],)), latent=4, width=8)
    assert method.always == [("sketch",)]
