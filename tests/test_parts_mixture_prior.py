"""The learned mixture prior against torch's own, and the pruning rule against a plain retelling of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal

from datasets.spec import UserError
from methods.parts.mixture_prior import MixturePrior, cluster_score, prune


def mixture(clusters: int = 4, size: int = 3, family: str = "laplace", seed: int = 0) -> MixturePrior:
    """Distinct centres and weights, float64."""
    torch.manual_seed(seed)
    prior = MixturePrior(size, family, clusters, 1.0).double()
    prior.centres.data = torch.randn(clusters, size).double()
    prior.logits.data = torch.randn(clusters).double()
    return prior


def reference(prior: MixturePrior) -> MixtureSameFamily:
    scale = {"laplace": 1.0, "gaussian": 1.0, "normal": math.log(2)}[prior.unit.family]
    kind = Laplace if prior.unit.family == "laplace" else Normal
    parts = Independent(kind(prior.centres, torch.tensor(scale).double()), 1)
    return MixtureSameFamily(Categorical(logits=prior.logits), parts)


@pytest.mark.parametrize("family", ["laplace", "gaussian", "normal"])
@settings(max_examples=20, deadline=None)
@given(clusters=st.integers(1, 6), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_density_is_that_of_torchs_mixture(family: str, clusters: int, size: int, seed: int) -> None:
    prior = mixture(clusters, size, family, seed)
    z = (3 * torch.randn(5, 2, 4, size)).double().requires_grad_()
    ours, theirs = prior.log_prob(z), reference(prior).log_prob(z)
    assert ours.shape == (5, 2, 4)
    # The floor of the scales, 1e-6, is the only difference.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    wanted = [z, prior.centres, prior.logits]
    for one, other in zip(
        torch.autograd.grad(ours.sum(), wanted), torch.autograd.grad(theirs.sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(clusters=st.integers(1, 6), seed=st.integers(0, 99))
def test_responsibilities_are_bayes_rule_and_sum_to_one(clusters: int, seed: int) -> None:
    prior = mixture(clusters, seed=seed)
    z = (2 * torch.randn(7, 3)).double()
    p = prior.responsibilities(z)
    torch.testing.assert_close(p.sum(-1), torch.ones(7).double())
    pi = prior.logits.softmax(0)
    densities = Laplace(prior.centres, torch.tensor(1.0).double()).log_prob(z[:, None]).sum(-1).exp()
    torch.testing.assert_close(
        p, pi * densities / (pi * densities).sum(1, keepdim=True), rtol=1e-4, atol=1e-6
    )


def test_the_papers_sum_over_clusters_is_the_log_density() -> None:
    prior = mixture()
    z = torch.randn(9, 3).double()
    log_p = prior.log_joint(z).log_softmax(-1)
    bracket = prior.log_joint(z) - log_p  # log p(z | c) + log pi_c - log p(c | z)
    torch.testing.assert_close((log_p.exp() * bracket).sum(-1), prior.log_prob(z))


@pytest.mark.parametrize("family", ["laplace", "normal"])
def test_draws_follow_weights_centres_and_scales(family: str) -> None:
    prior = mixture(clusters=3, size=2, family=family)
    prior.centres.data = torch.tensor([[-40.0, 0.0], [0.0, 40.0], [40.0, -40.0]]).double()
    z = prior.sample(30_000)
    which = prior.responsibilities(z).argmax(-1)
    share = torch.bincount(which, minlength=3).double() / len(z)
    torch.testing.assert_close(share, prior.logits.softmax(0), rtol=0, atol=0.01)
    rest = z - prior.centres[which]
    torch.testing.assert_close(rest.mean(0), torch.zeros(2).double(), rtol=0, atol=0.03)
    wanted = math.sqrt(2) if family == "laplace" else math.log(2)
    torch.testing.assert_close(rest.std(0), torch.full((2,), wanted).double(), rtol=0.03, atol=0)


def test_centres_start_within_the_spread_and_weights_equal() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(50, "laplace", 40, 0.5)
    assert prior.centres.abs().max() < 0.5 and prior.centres.abs().max() > 0.45
    torch.testing.assert_close(prior.centres.std(), torch.tensor(0.5 / math.sqrt(3)), rtol=0.05, atol=0)
    assert torch.equal(prior.logits.softmax(0), torch.full((40,), 1 / 40))
    for clusters, spread in ((0, 1.0), (3, -1.0)):
        with pytest.raises(UserError, match="clusters="):
            MixturePrior(2, "laplace", clusters, spread)


def retold(conditional: np.ndarray, weights: np.ndarray, beta: float, size: int) -> list[int]:
    """METHODS 2.9 word by word, in NumPy."""
    left, met = list(range(len(weights))), []
    while left:
        pi = weights[left] / weights[left].sum()
        joint = np.exp(conditional[:, left]) * pi
        p = joint / joint.sum(1, keepdims=True)
        terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
        entropy = terms.mean() / np.log(len(left)) if len(left) > 1 else 0.0
        met.append((beta * entropy - np.log(joint.sum(1)).mean() / size, list(left)))
        left.remove(left[int(p.sum(0).argmin())])
    return min(met, key=lambda pair: pair[0])[1]


@settings(max_examples=40, deadline=None)
@given(clusters=st.integers(1, 6), beta=st.floats(0, 5), seed=st.integers(0, 999))
def test_pruning_follows_the_rule(clusters: int, beta: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditional, weights = rng.normal(0, 3, (12, clusters)), rng.dirichlet(np.ones(clusters))
    kept = prune(torch.tensor(conditional), torch.tensor(weights).log(), beta, 3)
    assert kept.nonzero().flatten().tolist() == retold(conditional, weights, beta, 3)


def test_score_by_hand() -> None:
    # Two clusters, p(c | z) = (1/2, 1/2) and (1, 0): mean normalised entropy 1/2.
    log_joint = torch.tensor([[0.25, 0.25], [0.5, 0.0]]).double().log()
    assert cluster_score(log_joint, 2.0, 4) == pytest.approx(2 * 0.5 - math.log(0.5) / 4)
    assert cluster_score(log_joint[:, :1], 2.0, 4) == pytest.approx(-(math.log(0.25) + math.log(0.5)) / 8)


def test_pruning_finds_the_clusters_that_data_use() -> None:
    """Three groups of data; clusters: one each, a twin of the first, two idle ones far away."""
    torch.manual_seed(0)
    prior = mixture(clusters=6, size=2)
    prior.centres.data = torch.tensor(
        [[0.0, 0.0], [30.0, 0.0], [0.1, 0.1], [99.0, 99.0], [0.0, 30.0], [-99.0, 99.0]]
    ).double()
    prior.logits.data.zero_()
    z = torch.cat([prior.component(prior.centres[i]).rsample(200) for i in (0, 1, 4)])
    kept = prior.kept(z, 2.5)
    assert kept[[1, 4]].all() and not kept[[3, 5]].any() and kept[[0, 2]].sum() == 1
    # An example goes to the kept twin, whichever it is.
    chosen = prior.vote(torch.zeros(1, 5, 2).double(), kept)
    assert chosen.tolist() == [int(kept[[0, 2]].nonzero()[0]) * 2] * 5


def test_most_modalities_decide_and_ties_go_to_the_surer_cluster() -> None:
    prior = mixture(clusters=3, size=1)
    prior.centres.data = torch.tensor([[0.0], [10.0], [20.0]]).double()
    prior.logits.data.zero_()
    every = torch.ones(3, dtype=torch.bool)
    z = torch.tensor([[10.0, 14.9], [0.0, 19.0], [10.0, 19.0], [20.0, 14.9]]).double().unsqueeze(-1)
    assert prior.vote(z, every).tolist() == [1, 2]  # 1, 0, 1, 2 and 1, 2, 2, 1, where 19.0 is surer
    assert prior.vote(z, torch.tensor([True, False, True])).tolist()[0] in (0, 2)
