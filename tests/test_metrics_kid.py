"""Kernel distance, precision and recall of features, against their definitions."""

import numpy as np
import pytest
import torch

from metrics.kid import kid, kid_and_neighbours, precision_recall


def features(n, shift=0.0, seed=0, size=6):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_is_the_unbiased_squared_discrepancy_under_a_cubic_kernel():
    x, y = features(40), features(40, 0.5, 1)  # all of them in every subset

    def kernel(a, b):
        return (a.double().numpy() @ b.double().numpy().T / 6 + 1) ** 3

    within = [(k.sum() - np.trace(k)) / (40 * 39) for k in (kernel(x, x), kernel(y, y))]
    assert kid(x, y) == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), rel=1e-4)
    assert kid(x, y) > 10 * abs(kid(features(300, seed=2), features(300, seed=3)))


def test_precision_and_recall_are_shares_within_reach_of_the_third_neighbour():
    made, real = features(30, seed=4), features(50, 0.3, 5)
    distances = {k: torch.cdist(a, b) for k, (a, b) in {"rr": (real, real), "gg": (made, made)}.items()}
    across = torch.cdist(made, real)
    reach = {k: d.sort(1).values[:, 3] for k, d in distances.items()}
    precision = (across <= reach["rr"][None]).any(1).double().mean()
    recall = (across <= reach["gg"][:, None]).any(0).double().mean()
    assert precision_recall(made, real) == pytest.approx((float(precision), float(recall)))


def test_a_generator_of_one_picture_has_precision_and_no_recall():
    real = features(200, seed=6)
    precision, recall = precision_recall(real[:1] + 1e-3 * features(50, seed=7), real)
    assert precision == 1 and recall < 0.1
    far, none = precision_recall(features(50, 50.0), real)
    assert far == none == 0


def test_too_few_examples_leave_only_what_can_be_said():
    assert set(kid_and_neighbours(features(3), features(10, seed=1))) == {"kid"}
    assert set(kid_and_neighbours(features(4), features(10, seed=1))) == {"kid", "precision", "recall"}
