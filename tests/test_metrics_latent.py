import numpy as np
import pytest
import torch

from metrics.latent import LatentMetric, latent_views, probe, probe_rows
from metrics.protocol import Encodings


def encodings(split, given, labels, spread, private=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 6, generator=torch.Generator().manual_seed(9)) * 3
    z = centres[labels] + spread * torch.randn(len(labels), 6, generator=g)
    latents = {"z": z}
    if private:
        latents |= {f"w.{name}": torch.randn(len(labels), 2, generator=g) for name in given}
    groups = {name: torch.arange(len(labels)) // 5 for name in given}
    return Encodings(split, given, latents, {"digit": labels}, groups)


LABELS = torch.arange(600) % 10
TEST = torch.arange(300) % 10


def scores_of(spread, private=False, given=("a", "b"), **kw):
    metric = LatentMetric(**kw)
    rows = probe_rows(600, 100, 3, 0)
    for names in [(n,) for n in given] + [given]:
        metric.update(
            encodings("train", names, LABELS, spread, private),
            encodings("test", names, TEST, spread, private, seed=1),
            rows,
        )
    return metric, {(s.given, s.attribute): s for s in metric.compute()}


def test_clear_latents_score_one_and_noise_scores_chance():
    _, clear = scores_of(0.01)
    assert clear["", "100 z"].value == 1
    _, noise = scores_of(60.0)
    assert 0.03 < noise["", "100 z"].value < 0.2


def test_one_probe_per_modality_their_mean_and_a_joint_one():
    metric, scores = scores_of(2.0)
    assert set(scores) == {("a", "100 z"), ("b", "100 z"), ("a+b", "100 z"), ("", "100 z")}
    mean = (scores["a", "100 z"].value + scores["b", "100 z"].value) / 2
    assert scores["", "100 z"].value == pytest.approx(mean)
    found = scores["a", "100 z"]
    assert found.metric == "latent_acc" and found.n == 300 and found.low < found.value < found.high
    outcomes = metric.outcomes()
    assert sorted(k for k in outcomes if k.startswith("latent_acc/a/")) == [
        f"latent_acc/a/100 z/{i}" for i in range(3)
    ]
    repeats = [outcomes[f"latent_acc/a/100 z/{i}"].mean() for i in range(3)]
    assert np.mean(repeats) == pytest.approx(found.value)


def test_private_latents_are_probed_alone_and_with_z():
    _, scores = scores_of(0.01, private=True)
    assert scores["", "100 z"].value == 1
    assert scores["", "100 z+w"].value > 0.95
    assert scores["", "100 w"].value < 0.25
    views = latent_views({"z": torch.zeros(4, 3), "w.b": torch.ones(4, 2), "w.a": torch.zeros(4, 1)})
    assert {k: v.shape for k, v in views.items()} == {"z": (4, 3), "w": (4, 3), "z+w": (4, 6)}
    assert views["w"][0].tolist() == [0, 1, 1]


def test_training_rows_are_fixed_by_the_seed():
    first, again, other = (probe_rows(1000, 50, 4, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])
    assert len(first) == 4 and all(len(r) == 50 and r.max() < 1000 for r in first)


def test_full_probe_has_its_own_attribute():
    metric = LatentMetric()
    train, test = encodings("train", ("a",), LABELS, 0.1), encodings("test", ("a",), TEST, 0.1)
    metric.update(train, test, [np.arange(600)], "full")
    assert {s.attribute for s in metric.compute()} == {"full z"}


def test_encodings_must_be_finite_and_belong_together():
    metric = LatentMetric()
    broken = encodings("train", ("a",), LABELS, 0.1)
    broken.latents["z"][3, 2] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        metric.update(broken, encodings("test", ("a",), TEST, 0.1), [np.arange(50)])
    with pytest.raises(ValueError, match="belong together"):
        metric.update(
            encodings("train", ("b",), LABELS, 1), encodings("test", ("a",), TEST, 1), [np.arange(50)]
        )


def test_a_single_class_predicts_itself():
    assert probe(np.eye(3), np.full(3, 4), np.eye(3)[:2]).tolist() == [4, 4]
