"""Figures of captioned pictures: every caption whole, beside its own picture, on nobody else's place."""

import matplotlib.pyplot as plt
import pytest
import torch
from test_figure import SPEC, Noise, good

from bench import captions
from bench.captions import (
    Strip,
    draw_captioned,
    draw_pairs,
    fold,
    pictures_of_captions,
    plot_strips,
    plot_text_to_image,
)
from bench.errors import UsageError
from bench.grids import PAGE
from bench.plots import plot_figure
from bench.run import Options
from datasets.spec import DataSpec, Split

LONG = " ".join(["a large purple square at the middle and a brown background"] * 3)
"""33 words, more than any caption of the suite has."""


def words(tokens):
    return " ".join(f"word{int(i)}" for i in tokens)


@pytest.fixture
def kept(monkeypatch):
    """Figures handed to `save`, so that a test can look at their texts."""
    seen, real = [], captions.save

    def spy(drawn, *args, **more):
        seen.append(drawn)
        return real(drawn, *args, **more)

    monkeypatch.setattr(captions, "save", spy)
    return seen


@pytest.fixture
def split():
    stored = {"m0": torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)}
    stored |= {"m1": stored["m0"].flip(0), "text": torch.arange(20)[:, None] + torch.zeros(20, 4).long()}
    return Split(SPEC, stored, {})


def texts_of(figure):
    return [" ".join(text.get_text().split()) for text in figure.texts]


def boxes(figure):
    """Bounding boxes in inches of all texts, and of all pictures."""
    figure.canvas.draw()
    inches = figure.dpi_scale_trans.inverted()
    texts = [t.get_window_extent().transformed(inches) for t in figure.texts if t.get_text()]
    return texts, [axis.get_window_extent().transformed(inches) for axis in figure.axes]


@pytest.mark.parametrize("across", [3, 5, 6])
def test_captions_are_whole_and_stand_on_nobody_s_place(across, tmp_path, kept):
    pictures = list(torch.rand(across, 3, 64, 64))
    strips = [
        Strip(pictures, [LONG] * across, "a heading"),
        Strip(pictures, label="method\ntrain.steps=20"),
        Strip(pictures, [LONG] * across),
    ]
    good(plot_strips(strips, tmp_path / "strips", "a title", [LONG] * across), "strips")
    (figure,) = kept
    assert texts_of(figure).count(LONG) == 3 * across
    texts, places = boxes(figure)
    every = texts + places
    assert len(places) == 3 * across and len(texts) == 3 * across + 3
    for i, one in enumerate(every):
        assert one.x0 > -0.05 and one.x1 < PAGE + 0.05 and one.y0 > -0.05
        for other in every[i + 1 :]:
            across_, up = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1)
            assert across_ < 0.02 or up - max(one.y0, other.y0) < 0.02


def test_folding_loses_nothing():
    assert fold(LONG, 1.2).replace("\n", " ") == LONG and "\n" in fold(LONG, 1.2)
    assert fold("", 1.0) == ""


def test_pairs_show_each_caption_with_its_own_picture(tmp_path, kept):
    files = draw_pairs(Noise(SPEC).train(), tmp_path / "pairs", words, "toy", seed=1, title="noise on toy")
    good(files, "pairs")
    (figure,) = kept
    torch.manual_seed(0)
    made = captions.seeded(Noise(SPEC), 1, lambda: Noise(SPEC).joint_generate(12))
    assert texts_of(figure)[1:] == [words(row) for row in made["text"]]
    shown = [axis.images[0].get_array()[0, 0] for axis in figure.axes]
    for pixels, image in zip(shown, made["m0"], strict=True):
        assert abs(torch.tensor(pixels[:3] / 255.0) - image[:, 0, 0]).max() < 0.01


def test_figure_5_has_pairs_and_both_directions(split, tmp_path, kept):
    noise = Noise(SPEC)
    good(draw_captioned(noise, split, tmp_path / "five", words, "toy", title="noise"), "five")
    assert [a for a in noise.asked if isinstance(a, tuple)] == [
        (("text",), ("m0",), "ancestral"),
        (("m0",), ("text",), "ancestral"),
    ]
    real = [words(split.stored["text"][i]) for i in captions.spread(split, 5)]
    found = texts_of(kept[0])
    at = found.index("caption given, picture generated")
    assert found[at + 1 : at + 6] == real


def test_all_methods_get_the_same_captions(split, tmp_path, kept):
    drawn = {name: pictures_of_captions(Noise(SPEC), split, "toy", seed=3) for name in ("one", "two")}
    assert all(torch.equal(a, b) for a, b in zip(drawn["one"], drawn["two"], strict=True))
    good(plot_text_to_image(drawn, split, tmp_path / "t2i", words, "toy", "title"), "t2i")
    (figure,) = kept
    found = texts_of(figure)
    assert {"one", "two", "real"} <= set(found) and len(figure.axes) == 3 * 6
    assert [t for t in found if t.startswith("word")] == [
        words(split.stored["text"][i]) for i in captions.spread(split, 6)
    ]


def test_data_without_captions_are_one_sentence(tmp_path):
    spec = DataSpec(SPEC.images)
    with pytest.raises(UsageError, match="polydigits has no pictures with captions; draw this figure on"):
        draw_pairs(Noise(spec), tmp_path / "x", words, "polydigits")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("figure", ["5", "7", "8"])
def test_no_run_with_captions_is_one_sentence(figure, tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        plot_figure(figure, (), tmp_path / "out", None, None, None, Options(results=tmp_path))


def test_figures_left_open_are_closed(split, tmp_path):
    before = plt.get_fignums()
    draw_captioned(Noise(SPEC), split, tmp_path / "five", words, "toy")
    assert plt.get_fignums() == before
