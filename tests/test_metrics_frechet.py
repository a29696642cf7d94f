import numpy as np
import pytest
import torch

from datasets.spec import UserError
from metrics.frechet import (
    FrechetMetric,
    Moments,
    Statistics,
    cached_statistics,
    frechet_distance,
)
from metrics.protocol import Event


def statistics(features, batch=64):
    moments = Moments()
    for part in torch.as_tensor(features).split(batch):
        moments.update(part)
    return moments.statistics()


def test_distance_of_gaussians_with_commuting_covariances():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    s, t = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    m = rng.normal(size=6)
    a = Statistics(np.zeros(6), (basis * s) @ basis.T, 10)
    b = Statistics(m, (basis * t) @ basis.T, 10)
    expected = m @ m + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_distance_of_any_two_dimensional_gaussians():
    # tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2 matrices.
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
        a, b = x @ x.T, y @ y.T
        trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        expected = np.trace(a) + np.trace(b) - 2 * trace
        zero = np.zeros(2)
        assert frechet_distance(Statistics(zero, a, 9), Statistics(zero, b, 9)) == pytest.approx(
            expected, abs=1e-8
        )


def test_singular_covariances():
    line = np.zeros((5, 5))
    line[0, 0] = 4.0
    other = np.zeros((5, 5))
    other[1, 1] = 9.0
    zero = np.zeros(5)
    assert frechet_distance(Statistics(zero, line, 9), Statistics(zero, other, 9)) == pytest.approx(13)
    assert frechet_distance(Statistics(zero, line, 9), Statistics(zero, line, 9)) == pytest.approx(
        0, abs=1e-12
    )
    few = statistics(np.random.default_rng(2).normal(size=(10, 40)))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


def test_distance_matches_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24))
    y = rng.normal(size=(300, 24)) @ rng.normal(size=(24, 24)) + 0.5
    theirs = fidelity.fid_statistics_to_metric(
        fidelity.fid_features_to_statistics(torch.from_numpy(x)),
        fidelity.fid_features_to_statistics(torch.from_numpy(y)),
        verbose=False,
    )["frechet_inception_distance"]
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(theirs, rel=1e-9)


def test_streaming_statistics_equal_numpy_whatever_the_batch():
    # A large common offset would cost float32, and naive sums of squares, most of their digits.
    x = np.random.default_rng(4).normal(size=(1000, 7)) + 1e4
    for batch in (1, 7, 1000):
        found = statistics(x, batch)
        assert found.n == 1000
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-8, atol=1e-10)


def test_moments_refuse_what_has_no_covariance():
    moments = Moments()
    with pytest.raises(ValueError, match="two examples"):
        moments.statistics()
    with pytest.raises(ValueError, match="finite"):
        moments.update(torch.tensor([[1.0, float("nan")]]))


def test_unequal_dimensions_do_not_compare():
    with pytest.raises(ValueError, match="do not compare"):
        frechet_distance(statistics(np.eye(3)), statistics(np.eye(4)))


def test_cache_computes_once_and_distrusts_damage(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return statistics(np.random.default_rng(5).normal(size=(20, 3)))

    first = cached_statistics(tmp_path, "data|test|20|a|judge", compute)
    again = cached_statistics(tmp_path, "data|test|20|a|judge", compute)
    assert len(calls) == 1
    np.testing.assert_array_equal(first.covariance, again.covariance)
    cached_statistics(tmp_path, "data|test|20|a|other judge", compute)
    assert len(calls) == 2
    files = sorted((tmp_path / "statistics").iterdir())
    assert len(files) == 2 and all(f.suffix == ".npz" for f in files)
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    cached_statistics(tmp_path, "data|test|20|a|judge", compute)
    assert len(calls) == 3
    # Readable, but not what was written under this key.
    np.savez(
        files[0], mean=np.zeros(3), covariance=np.zeros((3, 3)), n=3, key="data|test|20|a|judge", sum="no"
    )
    np.savez(
        files[1], mean=np.zeros(3), covariance=np.zeros((3, 3)), n=3, key="data|test|20|a|judge", sum="no"
    )
    assert cached_statistics(tmp_path, "data|test|20|a|judge", compute).n == 20
    assert len(calls) == 4


def cross_event(images, given=("a",), task="cross", start=0):
    index = torch.arange(start, start + len(images))
    return Event(task, given, ("a", "b"), "s", None, index, {"a": images, "b": images}, {})


def pixels(_, images):
    assert images.dtype == torch.uint8
    return images.flatten(1).float()


def test_metric_averages_pairs_with_and_without_reconstructions():
    real = torch.rand(50, 1, 2, 2)
    stats = statistics((real * 255).round().flatten(1).numpy().astype(float))
    floor = {"a": 0.5, "b": 1.5}
    metric = FrechetMetric("fd", pixels, {"a": stats, "b": stats}, "j", floor, floor_n=50)
    metric.update(cross_event(real))
    metric.update(cross_event(real / 2, given=("b",)))
    metric.update(cross_event(real, given=("a", "b")))  # not a pair: no part of any average
    scores = {(s.metric, s.given, s.target): s for s in metric.compute()}
    half = scores["fd_cond", "b", "a"].value
    assert scores["fd_cond", "a", "b"].value == pytest.approx(0, abs=1e-8)
    assert half > 100
    assert scores["fd_cond", "", ""].value == pytest.approx(half / 2)
    assert scores["fd_cond_cross", "", ""].value == pytest.approx(half / 2)
    assert scores["fd_floor", "", ""].value == pytest.approx(1.0)
    assert scores["fd_floor", "", "b"].n == 50
    assert sum(s.metric == "fd_cond" and s.given != "" for s in metric.compute()) == 4


def test_metric_does_not_depend_on_batches_and_honours_the_limit():
    x = torch.rand(40, 1, 2, 2)
    stats = statistics(np.random.default_rng(6).normal(size=(30, 4)) * 50 + 100)

    def value(sizes, limit=None):
        metric = FrechetMetric("fd", pixels, {"a": stats}, "j", limit=limit)
        for part in x.split(sizes):
            metric.update(Event("joint", (), ("a",), "s", None, torch.arange(len(part)), {"a": part}, {}))
        return next(s for s in metric.compute() if s.target == "")

    assert value(40).value == pytest.approx(value(7).value, rel=1e-10)
    assert value(7, limit=10).n == 10
    assert value(7, limit=10).value == pytest.approx(value(40, limit=10).value, rel=1e-10)
    assert value(7, limit=10).value != pytest.approx(value(7).value, rel=1e-3)


def test_a_limit_takes_conditional_samples_from_all_test_tuples():
    """The first of a split that is sorted by class would be one class."""
    classes = torch.arange(40) // 20
    x = classes[:, None, None, None].expand(40, 1, 2, 2) * 0.5 + 0.1 * torch.rand(40, 1, 2, 2)
    stats = statistics(x.flatten(1).numpy().astype(np.float64) * 255)
    metric = FrechetMetric("fd", pixels, {"b": stats}, "j", limit=20, cross=40)
    for rows in torch.arange(40).split(7):
        metric.update(Event("cross", ("a",), ("b",), "s", None, rows, {"b": x[rows]}, {}))
    (found,) = [s for s in metric.compute() if s.metric == "fd_cond" and s.target == "b" and s.given == "a"]
    first = frechet_distance(stats, statistics(x[:20].flatten(1).numpy().astype(np.float64) * 255))
    assert found.n == 20 and found.value < 0.2 * first


def test_a_draw_that_comes_back_is_refused():
    stats = statistics(np.random.default_rng(7).normal(size=(30, 4)))
    metric = FrechetMetric("fd", pixels, {"a": stats}, "j")
    metric.update(cross_event(torch.rand(5, 1, 2, 2)))
    metric.update(cross_event(torch.rand(5, 1, 2, 2), given=("b",)))
    with pytest.raises(ValueError, match="one piece"):
        metric.update(cross_event(torch.rand(5, 1, 2, 2)))


def test_images_are_clamped_and_rounded_before_the_features():
    seen = []

    def record(_, images):
        seen.append(images)
        return pixels(_, images)

    stats = statistics(np.random.default_rng(8).normal(size=(30, 4)))
    metric = FrechetMetric("fd", record, {"a": stats}, "j")
    images = torch.tensor([-1.0, 0.5, 0.998, 3.0]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    metric.update(Event("joint", (), ("a",), "s", None, torch.arange(2), {"a": images}, {}))
    assert seen[0][0].flatten().tolist() == [0, 128, 254, 255]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "statistics").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be stored.*another --cache"):
        cached_statistics(tmp_path, "key", lambda: statistics(np.eye(3)))
