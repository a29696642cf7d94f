"""`shapes`: scenes, captions, their exact parser, pictures, and the prepared data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import scenes, shapes
from datasets.scenes import (
    ATTRIBUTES,
    NAMES,
    VOCABULARY,
    draw_pictures,
    draw_scenes,
    read_captions,
    write_captions,
)
from datasets.shapes import Shapes
from datasets.vocabulary import END, LENGTH, UNKNOWN, Vocabulary

TINY = {"train": 60, "val": 20, "test": 30}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", TINY)


def caption(text: str) -> np.ndarray:
    return VOCABULARY.encode([text.split()])


def code(name: str, value: str) -> int:
    return ATTRIBUTES[name].index(value)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_caption_says_exactly_its_scene(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = draw_scenes(200, rng)
    tokens = write_captions(drawn, rng)
    assert np.array_equal(read_captions(tokens), drawn)
    assert ((tokens == END).argmax(1) <= LENGTH - 1).all() and (tokens != UNKNOWN).all()
    sentences = {VOCABULARY.decode(row) for row in tokens.tolist()}
    assert all(sentence and "<" not in sentence for sentence in sentences)


def test_every_template_is_used() -> None:
    rng = np.random.default_rng(0)
    tokens = write_captions(draw_scenes(200, rng), rng).tolist()
    for count, templates in scenes._TEMPLATES.items():
        for template in templates:
            fixed = [(i, VOCABULARY.ids[word]) for i, word in enumerate(template) if word[0] != "="]
            assert any(all(caption[i] == word for i, word in fixed) for caption in tokens), (count, template)


def test_attributes_stand_in_the_same_places_whatever_the_template() -> None:
    rng = np.random.default_rng(0)
    tokens = write_captions(draw_scenes(500, rng), rng)
    ends = (tokens == END).argmax(1)
    assert len(set(ends.tolist())) == 1 and ends[0] <= 31
    # Words of different captions mixed position by position still make a caption that can be read.
    for left, right in zip(tokens[:-1], tokens[1:], strict=True):
        alone = [
            read_captions(c[None])[0, NAMES.index("shape_2")] == len(scenes.SHAPES) for c in (left, right)
        ]
        if alone[0] == alone[1]:
            mixed = np.where(rng.random(len(left)) < 0.5, left, right)
            assert (read_captions(mixed[None]) >= 0).all()


def test_a_caption_is_read_word_by_word() -> None:
    text = "a large red circle at the top and a small blue cross near the bottom on a grey background"
    (found,) = read_captions(caption(text))
    meant = {
        "shape_1": "circle",
        "colour_1": "red",
        "size_1": "large",
        "place_1": "top",
        "background": "grey",
    }
    meant |= {"shape_2": "cross", "colour_2": "blue", "size_2": "small", "place_2": "bottom"}
    assert dict(zip(NAMES, found, strict=True)) == {name: code(name, value) for name, value in meant.items()}
    alone = read_captions(caption("a large red circle at the top on a grey background"))[0]
    assert all(alone[NAMES.index(f"{kind}_2")] == code(f"{kind}_2", "none") for kind in scenes.KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle at the top on a grey background",  # no size
        "a large red circle at the top",  # no background
        "a large red red circle at the top on a grey background",
        "a large red circle at the top on a grey background on a white background",
        "a red large circle at the top on a grey background",  # an order that no template has
        "a large red hexagon at the top on a grey background",  # an unknown word
    ],
)
def test_what_is_no_caption_cannot_be_read(text: str) -> None:
    assert (read_captions(caption(text)) == -1).all()


def test_a_caption_without_end_or_with_a_foreign_id_cannot_be_read() -> None:
    good = caption("a large red circle at the top on a grey background")
    assert (read_captions(good) >= 0).all()
    endless = np.where(good == END, good[0, 0], good)
    foreign = good.copy()
    foreign[0, 0] = len(VOCABULARY)
    assert (read_captions(endless) == -1).all() and (read_captions(foreign) == -1).all()


def test_an_empty_right_slot_is_empty_in_all_its_attributes() -> None:
    drawn = draw_scenes(3000, np.random.default_rng(0))
    empty = np.stack([drawn[:, NAMES.index(f"{k}_2")] == code(f"{k}_2", "none") for k in scenes.KINDS], 1)
    assert (empty.all(1) == empty.any(1)).all() and 0.28 < empty[:, 0].mean() < 0.39
    for i, name in enumerate(NAMES):
        shares = np.bincount(drawn[:, i], minlength=len(ATTRIBUTES[name])) / len(drawn)
        rest = shares[:-1] if name.endswith("_2") else shares
        assert np.ptp(rest) < 0.05


def picture(**values: str) -> np.ndarray:
    row = {"background": "white", "shape_1": "circle", "colour_1": "red", "size_1": "large", "place_1": "top"}
    row |= {f"{kind}_2": "none" for kind in scenes.KINDS}
    row |= values
    drawn = np.array([[code(name, row[name]) for name in NAMES]])
    return draw_pictures(drawn, np.random.default_rng(0))[0].astype(int)


def test_pictures_show_what_the_scene_says() -> None:
    white = picture()
    assert white.shape == (3, 64, 64)
    red, green, _ = white
    there = (red - green) > 100
    rows, columns = np.nonzero(there)
    assert rows.max() < 32 and columns.max() < 32
    assert (white[:, ~there].mean(1) > 230).all()
    small = picture(size_1="small")
    assert 0.25 < ((small[0] - small[1]) > 100).sum() / there.sum() < 0.55
    low = picture(place_1="bottom")
    assert np.nonzero((low[0] - low[1]) > 100)[0].min() > 32
    two = picture(shape_2="square", colour_2="blue", size_2="large", place_2="middle")
    assert np.nonzero((two[2] - two[0]) > 100)[1].min() > 31
    areas = {s: ((p := picture(shape_1=s))[0] - p[1] > 100).sum() for s in scenes.SHAPES}
    assert areas["square"] > areas["circle"] > areas["cross"] > 0 and areas["triangle"] < areas["square"]


def test_counts_labels_and_words(tmp_path: Path, tiny: None) -> None:
    data = Shapes(tmp_path)
    for name, n in TINY.items():
        split = data.split(name)
        assert len(split) == n and split.groups == {}
        assert list(split.labels) == list(ATTRIBUTES)
        assert split.stored["image"].shape == (n, 3, 64, 64) and split.stored["caption"].shape == (n, 32)
        read = data.oracle.read(split.stored["caption"])
        assert all(torch.equal(read[a], split.labels[a]) for a in ATTRIBUTES)
    assert data.spec["caption"].vocabulary == len(VOCABULARY)
    assert " the " in data.sentence(data.split("test").stored["caption"][0])
    assert "no number compares" in data.notes[0]


def test_deterministic_from_the_seed(tmp_path: Path, tiny: None) -> None:
    first, again, other = Shapes(tmp_path / "a"), Shapes(tmp_path / "b"), Shapes(tmp_path / "a", seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_splits_share_no_picture(tmp_path: Path, tiny: None) -> None:
    data = Shapes(tmp_path)
    seen = [row.numpy().tobytes() for name in TINY for row in data.split(name).stored["image"]]
    assert len(set(seen)) == len(seen)


def test_the_vocabulary_is_fixed() -> None:
    assert isinstance(VOCABULARY, Vocabulary)
    values = {v for vs in ATTRIBUTES.values() for v in vs} - {"none"}
    assert values <= set(VOCABULARY.words)


@pytest.mark.slow
def test_the_judge_is_an_oracle_on_the_full_data(shared_cache: Path) -> None:
    from bench.evaluate import find_judges

    data = Shapes(shared_cache)
    assert [len(data.split(name)) for name in ("train", "test")] == [10_000, 1_000]
    judges, reason = find_judges(data, shared_cache)
    assert judges is not None and reason == ""
    assert set(judges.accuracy) == {f"image {a}" for a in ATTRIBUTES}
    assert min(judges.accuracy.values()) >= 0.97, judges.accuracy
