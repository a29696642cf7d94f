"""Coherence of attributes: identities, chance, captions that cannot be read, and a judge that learns."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.spec import DataSpec, Modality, Split
from metrics.attribute_judges import AttributeJudges, AttributeNet, attribute_judges
from metrics.attributes import AttributeMetric, chance_cross, chance_joint, chance_shuffled
from metrics.protocol import Event, Score

VALUES = {"hue": ("dark", "bright"), "tint": ("red", "green", "blue")}
SPEC = DataSpec((Modality("image", "image", (3, 8, 8)), Modality("caption", "text", (3,), vocabulary=9)))


class Oracle:
    """A caption `[hue, tint, 2]` holds codes + 3; anything else cannot be read."""

    attributes = VALUES

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        hue, tint = tokens[:, 0] - 3, tokens[:, 1] - 3
        bad = (hue < 0) | (hue > 1) | (tint < 0) | (tint > 2)
        return {"hue": hue.masked_fill(bad, -1), "tint": tint.masked_fill(bad, -1)}


class Exact:
    """A judge that reads the codes from the first pixels."""

    hash, hashes = "exact", {"image": "exact"}

    def classify(self, name: str, images: Tensor) -> dict[str, Tensor]:
        codes = images[:, 0, 0, :2].mul(10).round().long()
        return {"hue": codes[:, 0], "tint": codes[:, 1]}


def images(hue: Tensor, tint: Tensor) -> Tensor:
    out = torch.zeros(len(hue), 3, 8, 8)
    out[:, 0, 0, 0], out[:, 0, 0, 1] = hue / 10, tint / 10
    return out


def captions(hue: Tensor, tint: Tensor) -> Tensor:
    return torch.stack([hue + 3, tint + 3, torch.full_like(hue, 2)], 1)


def split(n: int = 60) -> Split:
    g = torch.Generator().manual_seed(0)
    hue, tint = torch.randint(0, 2, (n,), generator=g), torch.randint(0, 3, (n,), generator=g)
    stored = {"image": images(hue, tint).mul(255).round().to(torch.uint8), "caption": captions(hue, tint)}
    return Split(SPEC, stored, {"hue": hue, "tint": tint})


def event(task: str, given: tuple[str, ...], test: Split, generated: dict[str, Tensor]) -> Event:
    n = len(test)
    return Event(task, given, tuple(generated), "s", None, torch.arange(n), generated, {}, test.labels)  # type: ignore[arg-type]


def one(scores: list[Score], metric: str, **key: str) -> Score:
    wanted = {"given": "", "target": "", "attribute": ""} | key
    found = [s for s in scores if s.metric == metric and all(getattr(s, k) == v for k, v in wanted.items())]
    (score,) = found
    return score


def test_chance_is_what_independent_and_constant_answers_reach() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (40, 2))
    equal = np.mean([(a == b).all() for a in codes for b in codes])
    assert chance_joint(codes) == pytest.approx(equal)
    best = max(np.mean((codes == row).all(1)) for row in codes)
    assert chance_cross(codes) == pytest.approx(best)


def test_shuffled_chance_is_the_agreement_over_all_pairings() -> None:
    rng = np.random.default_rng(1)
    first, second, third = (rng.integers(-1, 3, (n, 2)) for n in (30, 20, 7))
    equal = [(a == b).all() and (a >= 0).all() for a in first for b in second]
    assert chance_shuffled([first, second]) == pytest.approx(np.mean(equal))
    triples = itertools.product(first, second, third)
    equal = [(a == b).all() and (a == c).all() and (a >= 0).all() for a, b, c in triples]
    assert chance_shuffled([first, second, third]) == pytest.approx(np.mean(equal))
    assert chance_shuffled([first, np.full((5, 2), -1)]) == 0


def test_a_taste_for_one_value_is_seen_when_pairs_are_shuffled() -> None:
    """Pictures and captions that mostly tell of hue 0, whatever the other shows or was given."""
    test, rng = split(), np.random.default_rng(2)
    tint = test.labels["tint"]
    hues = [torch.from_numpy((rng.random(60) < 0.1).astype(np.int64)) for _ in range(2)]
    metric = AttributeMetric(Exact(), Oracle(), test)
    made = {"image": images(hues[0], tint), "caption": captions(hues[1], tint)}
    metric.update(event("joint", (), test, made))
    metric.update(event("cross", ("caption",), test, {"image": made["image"]}))
    scores = metric.compute()
    reached, shuffled = (one(scores, f"coherence_joint{s}", attribute="hue").value for s in ("", "_shuffled"))
    chance = one(scores, "coherence_joint_chance", attribute="hue").value
    assert reached > chance + 0.2 and shuffled == pytest.approx(reached, abs=0.1)  # type: ignore[operator]
    cell = {"given": "caption", "target": "image"}
    p, q = (float((h == 0).double().mean()) for h in (hues[0], test.labels["hue"]))
    wanted = p * q + (1 - p) * (1 - q)
    found = one(scores, "coherence_cross_shuffled", attribute="hue", **cell).value
    assert found == pytest.approx(wanted)
    both = (found + one(scores, "coherence_cross_shuffled", attribute="tint", **cell).value) / 2  # type: ignore[operator]
    assert one(scores, "attribute_cross_shuffled", **cell).value == pytest.approx(both)
    assert one(scores, "attribute_cross_shuffled").value == pytest.approx(both)  # the only cell


def test_real_pairs_agree_and_perfect_samples_reach_one() -> None:
    test = split()
    hue, tint = test.labels["hue"], test.labels["tint"]
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("joint", (), test, {"image": images(hue, tint), "caption": captions(hue, tint)}))
    metric.update(event("cross", ("image",), test, {"caption": captions(hue, tint)}))
    metric.update(event("cross", ("caption",), test, {"image": images(hue, tint)}))
    scores = metric.compute()
    for name in ("coherence_joint", "coherence_cross", "attribute_joint", "attribute_cross"):
        assert one(scores, name).value == 1 and one(scores, f"{name}_ceiling").value == 1
        assert 0 < one(scores, f"{name}_chance").value < 1  # type: ignore[operator]
    assert one(scores, "caption_read", given="image", target="caption").value == 1
    assert one(scores, "judge_accuracy", target="image", attribute="tint").value == 1
    assert {"coherence_joint/s", "coherence_joint/s/hue", "coherence_cross/s/image/caption"} <= set(
        metric.outcomes()
    )


def test_each_attribute_and_all_together_are_counted_apart() -> None:
    test = split()
    hue, tint = test.labels["hue"], test.labels["tint"]
    wrong_hue = torch.where(torch.arange(60) < 15, 1 - hue, hue)
    wrong_tint = torch.where(torch.arange(60) >= 40, (tint + 1) % 3, tint)
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("cross", ("caption",), test, {"image": images(wrong_hue, wrong_tint)}))
    metric.update(event("cross", ("image",), test, {"caption": captions(hue, tint)}))
    metric.update(
        event("joint", (), test, {"image": images(wrong_hue, wrong_tint), "caption": captions(hue, tint)})
    )
    scores = metric.compute()
    cell = {"given": "caption", "target": "image"}
    assert one(scores, "coherence_cross", attribute="hue", **cell).value == pytest.approx(45 / 60)
    assert one(scores, "coherence_cross", attribute="tint", **cell).value == pytest.approx(40 / 60)
    assert one(scores, "coherence_cross", **cell).value == pytest.approx(25 / 60)
    assert one(scores, "attribute_cross", **cell).value == pytest.approx(85 / 120)
    assert one(scores, "coherence_cross").value == pytest.approx((25 / 60 + 1) / 2)
    assert one(scores, "coherence_joint").value == pytest.approx(25 / 60)
    assert one(scores, "coherence_joint", attribute="hue").value == pytest.approx(45 / 60)


def test_a_caption_that_cannot_be_read_is_wrong_in_everything() -> None:
    test = split()
    hue, tint = test.labels["hue"], test.labels["tint"]
    said = captions(hue, tint)
    said[:30, 1] = 0
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("joint", (), test, {"image": images(hue, tint), "caption": said}))
    metric.update(event("cross", ("image",), test, {"caption": said}))
    scores = metric.compute()
    for name in ("coherence_joint", "coherence_cross", "attribute_joint", "attribute_cross"):
        assert one(scores, name).value == pytest.approx(0.5)
    assert one(scores, "caption_read", target="caption").value == pytest.approx(0.5)
    hopeless = AttributeMetric(Exact(), Oracle(), test)
    hopeless.update(event("joint", (), test, {"image": images(hue, tint), "caption": said * 0}))
    assert one(hopeless.compute(), "coherence_joint").value == 0


def test_one_scene_over_and_over_is_a_collapse() -> None:
    test = split()
    same = torch.zeros(60, dtype=torch.int64)
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("joint", (), test, {"image": images(same, same), "caption": captions(same, same)}))
    assert one(metric.compute(), "largest_share").value == 1


def test_a_few_readable_captions_are_no_collapse() -> None:
    test = split()
    hue, tint = test.labels["hue"], test.labels["tint"]
    said = captions(hue, tint)
    said[3:] = 0
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("joint", (), test, {"image": images(hue, tint), "caption": said}))
    assert one(metric.compute(), "largest_share", target="caption").value <= 3 / len(said)


def test_a_given_modality_is_not_a_target_and_batches_add_up() -> None:
    test = split()
    hue, tint = test.labels["hue"], test.labels["tint"]
    metric = AttributeMetric(Exact(), Oracle(), test)
    metric.update(event("cross", ("image",), test, {"image": images(hue, tint)}))
    assert not [s for s in metric.compute() if s.metric == "coherence_cross"]
    for part in (slice(0, 20), slice(20, 60)):
        labels = {k: v[part] for k, v in test.labels.items()}
        said = {"caption": captions(hue[part], tint[part])}
        metric.update(
            Event("cross", ("image",), ("caption",), "s", None, torch.arange(60)[part], said, {}, labels)
        )
    assert one(metric.compute(), "coherence_cross").n == 60


def test_data_without_labels_or_captions_are_refused() -> None:
    test = split()
    with pytest.raises(ValueError, match="lacks labels"):
        AttributeMetric(Exact(), Oracle(), Split(SPEC, test.stored, {"hue": test.labels["hue"]}))
    pictures = DataSpec(SPEC.images)
    with pytest.raises(ValueError, match="a judged picture and a caption"):
        AttributeMetric(Exact(), Oracle(), Split(pictures, {"image": test.stored["image"]}, test.labels))


def bright(n: int, seed: int) -> Split:
    """Pictures whose channel and brightness tell the attributes."""
    g = torch.Generator().manual_seed(seed)
    hue, tint = torch.randint(0, 2, (n,), generator=g), torch.randint(0, 3, (n,), generator=g)
    x = torch.rand(n, 3, 8, 8, generator=g) * 40
    x[torch.arange(n), tint] += (80 + 100 * hue)[:, None, None]
    return Split(
        SPEC, {"image": x.to(torch.uint8), "caption": captions(hue, tint)}, {"hue": hue, "tint": tint}
    )


def test_judges_learn_are_kept_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = (bright(2000, 0), bright(100, 1), bright(100, 2))
    state = torch.get_rng_state()
    judges = attribute_judges(SPEC, VALUES, *parts, "f", tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert min(judges.accuracy.values()) > 0.97 and set(judges.accuracy) == {"image hue", "image tint"}
    (path,) = (tmp_path / "judges").glob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    again = attribute_judges(SPEC, VALUES, *parts, "f", tmp_path)
    assert again.hash == judges.hash and path.stat().st_mtime_ns == stamp
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 255
    path.write_bytes(raw)
    assert attribute_judges(SPEC, VALUES, *parts, "f", tmp_path).hash == judges.hash
    assert "damaged" in caplog.text
    x = parts[2].stored["image"]
    found = judges.classify("image", x / 255)
    assert (found["tint"] == parts[2].labels["tint"]).float().mean() > 0.97
    assert judges.features("image", x).shape == (100, 128)
    with pytest.raises(TypeError):
        judges.classify("image", x)
    with pytest.raises(TypeError):
        judges.features("image", x / 255)


def test_the_hash_tells_weights_apart() -> None:
    torch.manual_seed(0)
    nets = [AttributeNet((3, 8, 8), VALUES) for _ in range(2)]
    hashes = {AttributeJudges({"image": net}, {}, {}, {}).hash for net in nets}
    assert len(hashes) == 2
