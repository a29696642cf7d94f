import math

import numpy as np
import pytest
import torch

from datasets.spec import DataSpec, Modality, Split
from metrics.coherence import CoherenceMetric
from metrics.intervals import wilson
from metrics.protocol import Event


class PixelJudges:
    """Reads the digit from the first pixel (digit / 10)."""

    hash = "pixel"

    def __init__(self, names):
        self.hashes = {n: f"pixel-{n}" for n in names}

    def classify(self, name, images):
        return (images[:, 0, 0, 0] * 10).round().long()


def pictures(digits):
    digits = torch.as_tensor(digits)
    return (digits.float() / 10).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


def make_split(names=("a", "b", "c"), n=40, groups=True):
    spec = DataSpec(tuple(Modality(name, "image", (1, 4, 4)) for name in names))
    digit = torch.arange(n) % 10
    stored = {name: (pictures(digit) * 255).round().to(torch.uint8) for name in names}
    ids = {name: digit * 2 + (torch.arange(n) // 10) % 2 for name in names} if groups else {}
    return Split(spec, stored, {"digit": digit}, ids)


def metric_for(split, **kw):
    return CoherenceMetric(PixelJudges(split.spec.names), split, **kw)


def joint(split, columns, start=0, sampler="s"):
    generated = {name: pictures(d) for name, d in zip(split.spec.names, columns, strict=True)}
    n = len(columns[0])
    return Event("joint", (), split.spec.names, sampler, None, torch.arange(start, start + n), generated, {})


def cross(split, given, targets, predicted, rows=None):
    rows = torch.arange(len(split)) if rows is None else rows
    return Event(
        "cross", given, targets, "s", None, rows,
        {t: pictures(d) for t, d in zip(targets, predicted, strict=True)}, {},
        {"digit": split.labels["digit"][rows]}, {k: v[rows] for k, v in split.groups.items()},
    )  # fmt: skip


def index(scores):
    return {(s.metric, s.task, s.given, s.target, s.attribute): s for s in scores}


def test_joint_coherence_asks_for_equality_of_all():
    split = make_split()
    metric = metric_for(split)
    metric.update(joint(split, [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 0, 5]]))
    found = index(metric.compute())["coherence_joint", "joint", "", "", ""]
    assert (found.value, found.n) == (0.5, 4)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 4))
    assert metric.outcomes()["coherence_joint/s"].tolist() == [True, True, False, False]


def test_batches_add_up():
    split = make_split()
    whole, parts = metric_for(split), metric_for(split)
    g = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, 3, (30,), generator=g) for _ in range(3)]
    whole.update(joint(split, columns))
    for start in range(0, 30, 7):
        parts.update(joint(split, [c[start : start + 7] for c in columns], start))
    assert whole.compute() == parts.compute()
    assert whole.outcomes()["coherence_joint/s"].tolist() == parts.outcomes()["coherence_joint/s"].tolist()


def test_a_constant_generator_is_coherent_and_collapsed():
    split = make_split()
    metric = metric_for(split)
    metric.update(joint(split, [[7] * 50] * 3, sampler="stuck"))
    metric.update(joint(split, [torch.arange(50) % 10] * 3, sampler="fine"))
    scores = metric.compute()
    stuck = index([s for s in scores if s.sampler == "stuck"])
    fine = index([s for s in scores if s.sampler == "fine"])
    assert stuck["coherence_joint", "joint", "", "", ""].value == 1
    assert stuck["digit_entropy", "joint", "", "", ""].value == 0
    assert stuck["largest_share", "joint", "", "", ""].value == 1
    assert stuck["digits_present", "joint", "", "", ""].value == 1
    assert fine["digit_entropy", "joint", "", "", ""].value == pytest.approx(math.log(10))
    assert fine["largest_share", "joint", "", "", ""].value == pytest.approx(0.1)
    assert fine["digits_present", "joint", "", "", ""].value == 10


def test_one_stuck_modality_is_a_collapse():
    split = make_split()
    metric = metric_for(split)
    varied = torch.arange(50) % 10
    metric.update(joint(split, [varied, varied, [3] * 50]))
    scores = index(metric.compute())
    assert scores["largest_share", "joint", "", "", ""].value == 1
    assert scores["largest_share", "joint", "", "a", ""].value == pytest.approx(0.1)
    # Few coherent tuples that share their digit are no collapse of their own, but they are reported.
    assert scores["largest_share_coherent", "joint", "", "", ""].value == 1
    assert scores["largest_share_coherent", "joint", "", "", ""].n == 5


def test_incoherent_samples_leave_the_coherent_diversity_empty():
    split = make_split()
    metric = metric_for(split)
    metric.update(joint(split, [[1, 2], [2, 1], [1, 1]]))
    found = index(metric.compute())["digits_present_coherent", "joint", "", "", ""]
    assert (found.value, found.n) == (0, 0)


def test_reconstructions_never_count():
    split = make_split()
    metric = metric_for(split)
    digit = split.labels["digit"]
    wrong = (digit + 1) % 10
    # The reconstruction of a is perfect, the real targets are wrong.
    metric.update(cross(split, ("a",), ("a", "b", "c"), [digit, wrong, wrong]))
    scores = index(metric.compute())
    assert scores["coherence_cross", "cross", "", "", ""].value == 0
    assert ("coherence_cross", "cross", "a", "a", "") not in scores
    assert set(metric.outcomes()) == {"coherence_cross/s/a/b", "coherence_cross/s/a/c"}


def test_cross_average_runs_over_targets_then_subsets():
    split = make_split()
    metric = metric_for(split)
    digit = split.labels["digit"]
    wrong = (digit + 1) % 10
    metric.update(cross(split, ("a",), ("b", "c"), [digit, wrong]))
    metric.update(cross(split, ("b",), ("a", "c"), [digit, digit]))
    metric.update(cross(split, ("c",), ("a", "b"), [wrong, wrong]))
    metric.update(cross(split, ("a", "b"), ("c",), [digit]))
    scores = index(metric.compute())
    assert scores["coherence_cross", "cross", "", "", ""].value == pytest.approx(0.5)
    assert scores["coherence_cross", "cross", "a", "c", ""].value == 0
    assert scores["coherence_cross_n", "cross", "", "", "n_given=1"].value == pytest.approx(0.5)
    assert scores["coherence_cross_n", "cross", "", "", "nested n_given=1"].value == pytest.approx(0.5)
    assert scores["coherence_cross_n", "cross", "", "", "nested n_given=2"].value == 1
    assert scores["coherence_cross_n", "cross", "a+b", "", "n_given=2"].value == 1
    # Only one of the three pairs was drawn, which is no average over pairs.
    assert ("coherence_cross_n", "cross", "", "", "n_given=2") not in scores
    cells = [s for s in scores if s[0] == "coherence_cross" and s[2]]
    assert len(cells) == 6


def test_intervals_resample_the_given_pictures():
    n = 400
    split = make_split(n=n)  # 20 pictures, each in 20 tuples
    digit = split.labels["digit"]
    bad = split.groups["a"] % 4 == 0  # some pictures are always misread
    predicted = torch.where(bad, (digit + 1) % 10, digit)
    metric = metric_for(split)
    metric.update(cross(split, ("a",), ("b",), [predicted]))
    found = index(metric.compute())["coherence_cross", "cross", "a", "b", ""]
    low, high = wilson(found.value, n)
    assert found.low < found.value < found.high
    assert found.high - found.low > 2 * (high - low)
    alone = make_split(n=n, groups=False)
    metric = metric_for(alone)
    metric.update(cross(alone, ("a",), ("b",), [predicted]))
    found = index(metric.compute())["coherence_cross", "cross", "a", "b", ""]
    assert (found.low, found.high) == pytest.approx((low, high))


def test_ceiling_and_accuracy_come_from_real_tuples():
    split = make_split()
    # The judge misreads a quarter of the pictures of c.
    split.stored["c"] = split.stored["c"].clone()
    split.stored["c"][:10] = 255
    scores = index(metric_for(split).compute())
    assert scores["judge_accuracy", "", "", "a", ""].value == 1
    assert scores["judge_accuracy", "", "", "c", ""].value == pytest.approx(0.75)
    assert scores["judge_accuracy", "", "", "c", ""].judge == "pixel-c"
    assert scores["coherence_ceiling", "joint", "", "", ""].value == pytest.approx(0.75)
    assert scores["coherence_ceiling", "cross", "", "", ""].value == pytest.approx(2.75 / 3)


def test_modalities_without_a_judge_take_no_part():
    split = make_split()
    metric = CoherenceMetric(PixelJudges(("a", "b")), split)
    metric.update(joint(split, [[1, 2], [1, 2], [5, 6]]))
    metric.update(cross(split, ("c",), ("a", "b"), [split.labels["digit"]] * 2))
    scores = index(metric.compute())
    assert scores["coherence_joint", "joint", "", "", "of a+b"].value == 1
    assert scores["coherence_cross", "cross", "c", "b", ""].value == 1
    with pytest.raises(ValueError, match="two modalities"):
        CoherenceMetric(PixelJudges(("a",)), split)


def test_scores_are_plain_json():
    import json

    split = make_split()
    metric = metric_for(split)
    metric.update(joint(split, [[1, 2], [1, 2], [5, 6]]))
    metric.update(cross(split, ("a",), ("b",), [split.labels["digit"]]))
    for score in metric.compute():
        json.dumps(score.to_json(), allow_nan=False)
        assert type(score.value) is float and type(score.n) is int
    assert all(v.dtype == np.bool_ for v in metric.outcomes().values())
