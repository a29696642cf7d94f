"""Intervals of distances between distributions: what is left out, and how wide they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.distances import FOLDS, Found, folds_of
from metrics.frechet import FrechetMetric, Moments, frechet_distance
from metrics.protocol import Event, Score


def pixels(_, images):
    return images.flatten(1).float()


def moments(features: torch.Tensor) -> Moments:
    found = Moments()
    found.update(features)
    return found


REAL = moments(255 * torch.rand(400, 4, generator=torch.Generator().manual_seed(1))).statistics()


def metric(**settings) -> FrechetMetric:
    return FrechetMetric("fd", pixels, {"a": REAL, "b": REAL}, "j", **{"intervals": True, **settings})


def event(images, given=(), start=0, groups=None, targets=("a", "b")) -> Event:
    index = torch.arange(start, start + len(images))
    task = "cross" if given else "joint"
    drawn = {"a": images, "b": images}
    groups = {} if groups is None else {name: groups for name in given}
    return Event(task, given, targets, "s", None, index, drawn, {}, groups=groups)


def total(scores: list[Score], name: str) -> Score:
    return next(s for s in scores if s.metric == name and not s.target)


def test_parts_are_about_equal_and_do_not_depend_on_batches():
    every = folds_of(torch.arange(20_000))
    assert every.bincount(minlength=FOLDS).min() > 850 and every.max() == FOLDS - 1
    assert torch.equal(every, torch.cat([folds_of(some) for some in torch.arange(20_000).split(77)]))
    for period in (2, 10, FOLDS):  # classes that take turns are spread over all folds
        assert len(folds_of(torch.arange(0, 20_000, period)).unique()) == FOLDS


def test_a_distance_without_a_part_is_that_of_the_other_examples():
    x = torch.rand(400, 1, 2, 2)
    sample = metric().sample("a")
    images, folds = (255 * x).round().to(torch.uint8), folds_of(torch.arange(400))
    for at in torch.arange(400).split(33):
        sample.update(images[at], folds[at])
    assert len(sample.without()) == FOLDS
    for fold, found in enumerate(sample.without()):
        rest = moments(pixels("a", images[folds != fold])).statistics()
        assert found["fd"] == pytest.approx(frechet_distance(REAL, rest), rel=1e-9)
    assert sample.values()["fd"] == pytest.approx(
        frechet_distance(REAL, moments(pixels("a", images)).statistics()), rel=1e-12
    )


@pytest.mark.parametrize("given", [(), ("a",)])
def test_intervals_are_as_wide_as_distances_vary(given):
    """Of 150 samples of one distribution: half of an interval is t(0.975, 19) standard deviations."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(150):
        each = metric()
        x = 0.7 * torch.rand(300, 1, 2, 2, generator=generator)
        for start in range(0, 300, 100):
            each.update(event(x[start : start + 100], given, start))
        found.append(total(each.compute(), "fd_cond" if given else "fd_uncond"))
    spread = np.std([s.value for s in found])
    half = np.mean([(s.high - s.low) / 2 for s in found])
    assert half / spread == pytest.approx(2.09, rel=0.2)


def test_examples_of_one_picture_are_left_out_together():
    """Every picture four times: the interval is that of the pictures, which is twice as wide."""
    generator = torch.Generator().manual_seed(3)
    apart, together = [], []
    for _ in range(20):
        x, groups = (
            0.7 * torch.rand(300, 1, 2, 2, generator=generator).repeat(4, 1, 1, 1),
            torch.arange(300).repeat(4),
        )
        for kept, given in ((apart, None), (together, groups)):
            each = metric()
            each.update(event(x, ("a",), groups=given))
            score = total(each.compute(), "fd_cond")
            kept.append(score.high - score.low)
    assert np.mean(together) / np.mean(apart) == pytest.approx(2, rel=0.2)


def test_few_pictures_have_no_interval():
    """Twelve of them cannot fill twenty folds, however many tuples they make."""
    each = metric()
    each.update(event(torch.rand(240, 1, 2, 2), ("a",), groups=torch.arange(240) % 12))
    assert all(s.low is None and s.high is None for s in each.compute())


def test_the_interval_of_a_mean_is_that_of_the_same_tuples():
    """Of two targets that agree it is that of either; of few examples, and where none is asked for, none."""
    x = torch.rand(300, 1, 2, 2)
    each = metric()
    each.update(event(x, targets=("a",)))
    scores = {s.target: s for s in each.compute() if s.metric == "fd_uncond"}
    assert scores[""].low == scores["a"].low < scores["a"].value < scores["a"].high == scores[""].high
    cell = Found({"fd": 2.0}, 9, [{"fd": float(i)} for i in range(FOLDS)])
    assert Found.mean([cell, cell]) == cell
    assert Found.mean([cell, Found({"fd": 1.0}, 5)]) == Found({"fd": 1.5}, 5, [])
    for few in (metric(), metric(intervals=False)):
        few.update(event(x[: FOLDS - 1] if few.intervals else x))
        assert all(s.low is None and s.high is None for s in few.compute())
    with pytest.raises(ValueError, match="beside"):
        metric(beside=lambda name, features: {"kd": 0.0})
