"""How well do a method's clusters agree with the labels? For methods that have clusters (CMVAE)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metrics.protocol import Score

Codes = NDArray[np.int64]


def matched_accuracy(clusters: Codes, labels: Codes) -> float:
    """Share of examples that are right when every cluster stands for one label and every label for at most
    one cluster, matched as well as can be (Hungarian method); clusters left over count as wrong."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((clusters.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def clustering_scores(clusters: Codes, labels: Codes) -> list[Score]:
    """`cluster_acc`, `cluster_nmi` (arithmetic mean of the entropies), `cluster_ari`, and `cluster_count`,
    the number of clusters that any example is in, from cluster and label `[N]` of every example.

    Raises ValueError for no example.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    n = len(labels)
    if n == 0 or len(clusters) != n:
        raise ValueError("clustering scores need at least one example, and a cluster for each")
    values = {
        "cluster_acc": matched_accuracy(clusters, labels),
        "cluster_nmi": float(normalized_mutual_info_score(labels, clusters)),
        "cluster_ari": float(adjusted_rand_score(labels, clusters)),
    }
    scores = [Score(name, value, n, "higher", task="encode") for name, value in values.items()]
    return [*scores, Score("cluster_count", float(len(np.unique(clusters))), n, "", task="encode")]
