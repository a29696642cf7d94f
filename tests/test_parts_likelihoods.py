"""Likelihoods against torch.distributions, their weights, and the refusal of impossible settings."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Laplace, Normal

from datasets.spec import Modality, UserError
from methods.parts.likelihoods import (
    Likelihood,
    categorical_log_prob,
    gaussian_log_prob,
    laplace_log_prob,
)

IMAGE = Modality("i", "image", (2, 8, 8))
TEXT = Modality("t", "text", (5,), vocabulary=7)


def test_image_densities_sum_over_the_event_only() -> None:
    torch.manual_seed(0)
    x, location = torch.rand(3, 2, 8, 8).double(), torch.randn(4, 6, 3, 2, 8, 8).double()
    for ours, torchs in ((laplace_log_prob, Laplace), (gaussian_log_prob, Normal)):
        expected = torchs(location, 0.75).log_prob(x).sum((-1, -2, -3))
        assert expected.shape == (4, 6, 3)
        torch.testing.assert_close(ours(x, location, 0.75), expected)


def test_categorical_counts_every_position() -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[0, 1, 2, 1, 1], [3, 4, 0, 6, 2]])  # unknown (0) and padding (1) included
    logits = torch.randn(4, 2, 5, 7).double()
    expected = Categorical(logits=logits).log_prob(tokens).sum(-1)
    torch.testing.assert_close(categorical_log_prob(tokens, logits), expected)


def test_weights_multiply_the_sum() -> None:
    likelihood = Likelihood("laplace", 0.5, image_weight=0.25, text_weight=5.0)
    x, location = torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8, 8)
    torch.testing.assert_close(likelihood(IMAGE, x, location), 0.25 * laplace_log_prob(x, location, 0.5))
    tokens, logits = torch.zeros(3, 5, dtype=torch.int64), torch.randn(3, 5, 7)
    torch.testing.assert_close(likelihood(TEXT, tokens, logits), 5 * categorical_log_prob(tokens, logits))
    gaussian = Likelihood("gaussian", 0.3)
    torch.testing.assert_close(gaussian(IMAGE, x, location), gaussian_log_prob(x, location, 0.3))


def test_half_precision_does_not_reach_the_sum() -> None:
    x, location = torch.rand(2, 2, 8, 8), torch.rand(2, 2, 8, 8).bfloat16()
    got = laplace_log_prob(x, location, 0.75)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, laplace_log_prob(x, location.float(), 0.75))


@pytest.mark.parametrize(("kind", "scale"), [("cauchy", 1.0), ("laplace", 0.0), ("gaussian", -1.0)])
def test_impossible_settings(kind: str, scale: float) -> None:
    with pytest.raises(UserError):
        Likelihood(kind, scale)
