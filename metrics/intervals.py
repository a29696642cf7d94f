"""95 % intervals of means over test tuples.

Tuples of a recombined data set are not independent: few source pictures stand behind many tuples, and
whoever gets one picture wrong gets all its tuples wrong. The intervals therefore resample *pictures*.

* no clusters: Wilson's interval.
* one cluster per tuple (one given modality): percentile bootstrap over clusters.
* several cluster labels per tuple (several given modalities, each with its own picture): the labels cross
  each other, so no single resampling unit exists. The variance is then the inclusion-exclusion sum over
  all combinations of the labels (Cameron, Gelbach and Miller, Robust inference with multiway clustering,
  2011), never taken below the largest of the one-way variances.

What is no mean over tuples, as a distance between two distributions, has the interval of a jackknife.

All intervals are conditional on the trained model; spread over seeds is the table's business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal."""

Interval = tuple[float, float]


def wilson(mean: float, n: float, z: float = Z95) -> Interval:
    """Wilson's score interval of a mean of `n` independent values in [0, 1].

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    Exact in spirit for 0/1 values, conservative for values between. Raises ValueError for n <= 0 or a mean
    outside [0, 1]. Source: Wilson, JASA 1927.
    """
    if n <= 0 or not 0 <= mean <= 1:
        raise ValueError(f"Wilson's interval needs n > 0 and a mean in [0, 1], got n={n}, mean={mean}")
    scale = 1 + z * z / n
    centre = (mean + z * z / (2 * n)) / scale
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / scale
    # Where all outcomes agree the bound is exactly 0 or 1; rounding may miss it by one unit.
    return (0.0 if mean == 0 else max(0.0, centre - half)), (1.0 if mean == 1 else min(1.0, centre + half))


def _codes(cluster: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """Cluster labels as 0..C-1, and C."""
    unique, codes = np.unique(np.asarray(cluster), return_inverse=True)
    return codes.reshape(-1).astype(np.int64), len(unique)


def bootstrap(values: ArrayLike, cluster: ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` `[N]` in [0, 1], resampling whole clusters `[N]`.

    Each resample draws C clusters with replacement and takes sum of values / number of tuples, so that
    clusters of unequal size keep their weight. Where all cluster means agree (all right, all wrong, or a
    single cluster) resampling shows no spread; then Wilson's interval over the number of clusters.
    """
    y = np.asarray(values, dtype=np.float64)
    codes, count = _codes(cluster)
    sums = np.bincount(codes, weights=y, minlength=count)
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    if np.ptp(sums / sizes) < 1e-12:
        return wilson(float(np.clip(y.mean(), 0, 1)), count)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def cluster_variance(values: ArrayLike, cluster: ArrayLike) -> float:
    """Variance of the mean of `values` `[N]` under one-way clustering.

    V = C/(C-1) sum_c (sum_{i in c} (y_i - mean))^2 / N^2; 0 for a single cluster.
    """
    y = np.asarray(values, dtype=np.float64)
    codes, count = _codes(cluster)
    if count < 2:
        return 0.0
    sums = np.bincount(codes, weights=y - y.mean(), minlength=count)
    return float((sums**2).sum() * count / (count - 1) / len(y) ** 2)


def multiway_variance(values: ArrayLike, clusters: Sequence[ArrayLike]) -> float:
    """Variance of the mean of `values` `[N]` when several cluster labels `[N]` cross each other.

    V = sum over non-empty sets A of labels of (-1)^(|A|+1) V_A, with V_A the one-way variance of the
    intersection clusters of A; at least the largest one-way variance, since the sum may come out too
    small, even negative, in small samples.
    """
    coded = [_codes(c) for c in clusters]
    total, largest = 0.0, 0.0
    for size in range(1, len(coded) + 1):
        for combination in itertools.combinations(coded, size):
            joint = np.zeros(len(combination[0][0]), dtype=np.int64)
            for codes, count in combination:
                # Re-coding after every factor keeps the product of the counts from overflowing.
                joint = _codes(joint * count + codes)[0]
            variance = cluster_variance(values, joint)
            total += variance if size % 2 else -variance
            largest = max(largest, variance) if size == 1 else largest
    return max(total, largest)


def interval(values: ArrayLike, clusters: Sequence[ArrayLike] = (), seed: int = 0) -> Interval:
    """95 % interval of the mean of `values` `[N]` in [0, 1] given 0, 1 or several cluster labels `[N]`.

    Several labels: V from `multiway_variance` is turned into an effective number of tuples
    p(1-p)/V for Wilson's interval, which unlike mean +- 1.96 sqrt(V) stays inside [0, 1].
    Raises ValueError for an empty array or labels of another length.
    """
    y = np.asarray(values, dtype=np.float64)
    if len(y) == 0 or any(len(np.asarray(c)) != len(y) for c in clusters):
        raise ValueError("an interval needs at least one value and cluster labels of the same length")
    mean = float(np.clip(y.mean(), 0, 1))
    if not clusters:
        return wilson(mean, len(y))
    if len(clusters) == 1:
        return bootstrap(y, clusters[0], seed=seed)
    variance = multiway_variance(y, clusters)
    fewest = min(_codes(c)[1] for c in clusters)
    effective = mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else fewest
    return wilson(mean, max(1.0, effective))


def jackknife_half(without: Sequence[float]) -> float:
    """Half of the 95 % interval of a statistic, given its values `without` each of G folds of the data.

    t(0.975, G-1) sqrt((G-1)/G sum_g (v_g - mean)^2). The folds are of about the same size.
    Raises ValueError for fewer than two.
    Source: the delete-a-group jackknife, e.g. Shao and Tu, The Jackknife and Bootstrap, 1995, section 2.3.
    """
    from scipy.stats import t  # slow to import

    values = np.asarray(without, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a jackknife needs at least two folds, got {len(values)}")
    variance = (len(values) - 1) * float(np.var(values))
    return float(t.ppf(0.975, len(values) - 1)) * math.sqrt(variance)
