import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.intervals import bootstrap, cluster_variance, interval, jackknife_half, multiway_variance, wilson


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_the_roots_of_the_score_equation(n, data):
    p = data.draw(st.integers(0, n)) / n
    for bound in wilson(p, n):
        if 0 < bound < 1:
            assert abs(p - bound) == pytest.approx(
                1.959963984540054 * np.sqrt(bound * (1 - bound) / n), abs=1e-9
            )
    assert wilson(p, n)[0] <= p <= wilson(p, n)[1]


def test_wilson_matches_scipy():
    from scipy.stats import binomtest

    low, high = binomtest(37, 120).proportion_ci(0.95, method="wilson")
    assert wilson(37 / 120, 120) == pytest.approx((low, high), abs=1e-12)


def test_wilson_refuses_impossible_input():
    with pytest.raises(ValueError, match="n > 0"):
        wilson(0.5, 0)
    with pytest.raises(ValueError, match="mean"):
        wilson(1.5, 10)


def clustered(rng, clusters=40, size=12, spread=0.3):
    """0/1 outcomes whose chance depends on the cluster; the true mean is 0.5."""
    chance = np.clip(0.5 + rng.choice([-spread, spread], clusters), 0, 1)
    labels = np.repeat(np.arange(clusters), size)
    return (rng.random(len(labels)) < chance[labels]).astype(float), labels


def coverage(make, runs=150):
    rng = np.random.default_rng(0)
    return np.mean([low <= 0.5 <= high for low, high in (make(rng) for _ in range(runs))])


def test_bootstrap_over_pictures_covers_where_independent_tuples_would_not():
    honest = coverage(lambda rng: bootstrap(*clustered(rng), resamples=400))
    naive = coverage(lambda rng: wilson(float(clustered(rng)[0].mean()), 480))
    assert 0.88 <= honest <= 0.99
    assert naive < 0.8


def crossed(rng, levels=40, n=800, spread=0.22):
    """Outcomes that depend on two crossed labels."""
    a, b = rng.integers(0, levels, n), rng.integers(0, levels, n)
    effects = rng.choice([-spread, spread], (2, levels))
    return (rng.random(n) < 0.5 + effects[0][a] + effects[1][b]).astype(float), a, b


def test_two_crossed_labels_are_both_counted():
    def both(rng):
        y, a, b = crossed(rng)
        return interval(y, [a, b])

    def one(rng):
        y, a, _ = crossed(rng)
        return interval(y, [a])

    assert 0.88 <= coverage(both) <= 0.99
    assert coverage(one) < 0.88


def test_multiway_variance_with_one_label_is_the_one_way_variance():
    y, labels = clustered(np.random.default_rng(1))
    assert multiway_variance(y, [labels]) == pytest.approx(cluster_variance(y, labels), rel=1e-12)
    # The same label twice says nothing new.
    assert multiway_variance(y, [labels, labels]) == pytest.approx(cluster_variance(y, labels), rel=1e-12)


def test_singleton_clusters_give_the_variance_of_a_mean():
    y = np.random.default_rng(2).random(50)
    assert cluster_variance(y, np.arange(50)) == pytest.approx(y.var(ddof=1) / 50, rel=1e-12)
    assert multiway_variance(y, [np.arange(50), np.arange(50)[::-1]]) == pytest.approx(y.var(ddof=1) / 50)


def test_full_agreement_still_leaves_doubt():
    low, high = interval(np.ones(100), [np.repeat(np.arange(10), 10)])
    assert high == 1.0 and low == pytest.approx(wilson(1.0, 10)[0])
    low, high = interval(np.zeros(100), [np.arange(100) % 7, np.arange(100) % 11])
    assert low == 0.0 and high == pytest.approx(wilson(0.0, 7)[1])


def test_bootstrap_depends_on_its_seed_only():
    y, labels = clustered(np.random.default_rng(3))
    assert bootstrap(y, labels, seed=1) == bootstrap(y, labels, seed=1)
    assert bootstrap(y, labels + 100, seed=1) == bootstrap(y, labels, seed=1)
    assert bootstrap(y, labels, seed=1) != bootstrap(y, labels, seed=2)


def test_an_interval_needs_values_and_labels_of_their_length():
    with pytest.raises(ValueError, match="same length"):
        interval(np.ones(3), [np.arange(4)])
    with pytest.raises(ValueError, match="at least one"):
        interval(np.ones(0))


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_jackknife_of_a_mean_is_students_interval(values):
    """Each part one value: half = t s / sqrt(n), an identity."""
    from scipy.stats import t

    y, n = np.array(values), len(values)
    without = [float(np.delete(y, i).mean()) for i in range(n)]
    expected = t.ppf(0.975, n - 1) * y.std(ddof=1) / np.sqrt(n)
    assert jackknife_half(without) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_jackknife_needs_two_folds():
    with pytest.raises(ValueError, match="two folds"):
        jackknife_half([1.0])
