"""Clustering scores by hand, and who gets them: methods with clusters, pruned on val."""

from __future__ import annotations

import numpy as np
import pytest
from toy_data import ToyData

from bench.config import Plan
from bench.evaluate import evaluate
from methods.cmvae import CMVAE
from methods.mopoe import MoPoE
from metrics.clustering import clustering_scores, matched_accuracy

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


def values(clusters: np.ndarray) -> dict[str, float]:
    return {s.metric: s.value for s in clustering_scores(clusters, LABELS)}


def test_perfect_clusters_under_any_names() -> None:
    found = values(np.array([7, 1, 4])[LABELS])
    assert found == pytest.approx({"cluster_acc": 1, "cluster_nmi": 1, "cluster_ari": 1, "cluster_count": 3})


def test_one_cluster_says_nothing() -> None:
    found = values(np.zeros_like(LABELS))
    assert found == pytest.approx(
        {"cluster_acc": 0.4, "cluster_nmi": 0, "cluster_ari": 0, "cluster_count": 1}
    )


def test_a_split_label_counts_once() -> None:
    assert matched_accuracy(np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3]), LABELS) == pytest.approx(0.8)
    assert matched_accuracy(np.array([0, 0, 0, 0, 0, 0, 2, 2, 2, 2]), LABELS) == pytest.approx(0.7)


def test_no_example_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        clustering_scores(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


def test_only_methods_with_clusters_are_scored_and_val_decides_on_pruning(tmp_path) -> None:
    data = ToyData(tmp_path)
    plan = Plan(metrics=("clustering",))
    small = {"latent": 4, "network": "cnn", "width": 8}
    seen, cmvae = [], CMVAE(data.spec, private=3, clusters=3, **small)
    assign = cmvae.assign
    cmvae.assign = lambda x, held_out: seen.append((x, held_out)) or assign(x, held_out)
    scores = {s.metric: s for s in evaluate(cmvae, data, plan, cache=tmp_path).scores}
    test, val, first = data.split("test"), data.split("val"), data.spec.names[0]
    assert scores.keys() == {"cluster_acc", "cluster_nmi", "cluster_ari", "cluster_count"}
    assert all(s.n == len(test) for s in scores.values())
    assert sum(len(x[first]) for x, _ in seen) == len(test)
    held_out = {tuple(row.flatten()[:9].tolist()) for _, held in seen for row in held[first]}
    assert held_out <= {tuple(row.flatten()[:9].tolist()) for row in val.batch(slice(0, len(val)))[first]}
    assert evaluate(MoPoE(data.spec, **small), data, plan, cache=tmp_path).scores == []
