"""Figures of pictures with captions (5, 7, 8): every caption in full, set under or over its picture.

Pictures float `[C, H, W]` in [0, 1], sentences as text; sizes are inches on a page of `PAGE`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.drawing import seeded, serves, spread
from bench.errors import UsageError
from bench.grids import GRID_DPI, PAGE, Words, picture
from bench.style import save, styled

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.spec import DataSpec, Split
    from methods.base import Method

FONT = 6.5
LETTER = 0.052
"""Width of a letter of `FONT` points on average, with some room."""

LINE = 0.112
"""Height of a line of it."""

GAP = 0.09
PIXELS = 320


@dataclass
class Strip:
    """Pictures side by side, a caption under each ("" for none), under a heading or behind a label."""

    pictures: Sequence[Tensor]
    captions: Sequence[str] = field(default_factory=tuple)
    heading: str = ""
    label: str = ""


def plot_strips(
    strips: Sequence[Strip], path: Path, title: str = "", above: Sequence[str] = ()
) -> list[Path]:
    """Strips one below another, all pictures of one size; `above`: a caption over every column."""
    across = max([len(above), *(len(strip.pictures) for strip in strips)])
    longest = max(len(line) for strip in strips for line in strip.label.split("\n"))
    left = longest * LETTER * 1.2 + (GAP if longest else 0)
    side = (PAGE - left) / across - GAP
    folded = [[fold(text, side) for text in strip.captions] for strip in strips]
    over = [fold(text, side) for text in above]
    heights = [_height([s.heading]) + side + GAP + _height(f) for s, f in zip(strips, folded, strict=True)]
    total = sum(heights) + _height(over) + _height([title])
    with styled() as plt:
        figure = plt.figure(figsize=(PAGE, total))

        def write(text: str, x: float, top: float, **how: Any) -> None:
            how = {"fontsize": FONT, "ha": "left", "va": "top", "linespacing": 1.15, **how}
            figure.text(x / PAGE, 1 - top / total, text, parse_math=False, **how)

        if title:
            write(title, 0, 0, fontsize=9)
        top = _height([title])
        top += _height(over)
        for i, text in enumerate(over):
            write(text, left + i * (side + GAP), top - GAP / 2, va="bottom")
        for strip, texts in zip(strips, folded, strict=True):
            if strip.heading:
                write(strip.heading, left, top, fontsize=8)
            top += _height([strip.heading])
            if strip.label:
                write(strip.label, left - GAP, top + side / 2, ha="right", va="center", fontsize=8)
            for i, image in enumerate(strip.pictures):
                x = left + i * (side + GAP)
                place = (x / PAGE, 1 - (top + side) / total, side / PAGE, side / total)
                axis = figure.add_axes(place)
                axis.set_axis_off()
                axis.imshow(picture(image, PIXELS), interpolation="antialiased")
                if i < len(texts):
                    write(texts[i], x, top + side + GAP / 2)
            top += side + GAP + _height(texts)
        return save(figure, path, dpi=GRID_DPI)


def fold(text: str, width: float) -> str:
    """A sentence in lines that fit `width` inches; nothing is cut."""
    return "\n".join(textwrap.wrap(text, max(8, int(width / LETTER))))


def _height(texts: Sequence[str]) -> float:
    """Inches that the tallest of some texts takes, 0 where there is none."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    return lines * LINE + GAP if lines else 0.0


# -- drawn with a method -----------------------------------------------------------------------------


def picture_and_caption(spec: DataSpec, dataset: str) -> tuple[str, str]:
    """Names of the first picture and of the caption of a data set. UsageError where it has not both."""
    if not spec.images or not spec.texts:
        raise UsageError(f"{dataset} has no pictures with captions; draw this figure on shapes, cub or coco")
    return spec.images[0].name, spec.texts[0].name


def draw_pairs(
    method: Method, path: Path, words: Words, dataset: str, seed: int = 0, title: str = "", count: int = 12
) -> list[Path]:
    """Figure 7: unconditional pairs of a picture and a caption."""
    image, text = picture_and_caption(method.spec, dataset)
    sampler = serves(method, None, "joint")
    made = seeded(method, seed, lambda: method.joint_generate(count, sampler))
    pictures, captions = made[image].cpu(), [words(row) for row in made[text].cpu()]
    across = 4
    strips = [
        Strip(pictures[i : i + across].unbind(), [c or "(empty)" for c in captions[i : i + across]])
        for i in range(0, count, across)
    ]
    return plot_strips(strips, path, f"{title}, unconditional, sampler {sampler}")


def draw_captioned(
    method: Method,
    split: Split,
    path: Path,
    words: Words,
    dataset: str,
    seed: int = 0,
    title: str = "",
    count: int = 5,
) -> list[Path]:
    """Figure 5: unconditional pairs, pictures of given captions, captions of given pictures."""
    image, text = picture_and_caption(method.spec, dataset)
    strips = []
    if type(method).unsupported(method.spec, "joint") is None:
        sampler = serves(method, None, "joint")
        made = seeded(method, seed, lambda: method.joint_generate(count, sampler))
        strips.append(_strip(made[image], made[text], words, f"unconditional, sampler {sampler}"))
    if type(method).unsupported(method.spec, "cross") is None:
        sampler = serves(method, None, "cross")
        real = split.batch(spread(split, count))
        real = {name: cells.to(method.device) for name, cells in real.items()}

        def cross(given: str, target: str) -> Tensor:
            draw = seeded(
                method, seed, lambda: method.cross_generate({given: real[given]}, [target], sampler)
            )
            found: Tensor = draw[target]
            return found

        strips.append(_strip(cross(text, image), real[text], words, "caption given, picture generated"))
        strips.append(_strip(real[image], cross(image, text), words, "picture given, caption generated"))
    if not strips:
        raise UsageError(f"{type(method).__name__} draws neither joint nor conditional samples here")
    return plot_strips(strips, path, title)


def _strip(pictures: Tensor, tokens: Tensor, words: Words, heading: str) -> Strip:
    return Strip(pictures.cpu().unbind(), [words(row) or "(empty)" for row in tokens.cpu()], heading)


def pictures_of_captions(
    method: Method, split: Split, dataset: str, seed: int = 0, count: int = 6
) -> list[Tensor]:
    """One picture for each of `count` captions of a split, by the method's first conditional sampler."""
    image, text = picture_and_caption(method.spec, dataset)
    sampler = serves(method, None, "cross")
    given = {text: split.batch(spread(split, count))[text].to(method.device)}
    made = seeded(method, seed, lambda: method.cross_generate(given, [image], sampler))
    return list(made[image].cpu().unbind())


def plot_text_to_image(
    drawn: dict[str, list[Tensor]], split: Split, path: Path, words: Words, dataset: str, title: str = ""
) -> list[Path]:
    """Figure 8: a column per caption, a row per method (label -> its pictures), the real pictures last."""
    image, text = picture_and_caption(split.spec, dataset)
    count = max(len(pictures) for pictures in drawn.values())
    real = split.batch(spread(split, count))
    strips = [Strip(pictures, label=label) for label, pictures in drawn.items()]
    strips.append(Strip(real[image].cpu().unbind(), label="real"))
    return plot_strips(strips, path, title, above=[words(row) for row in real[text].cpu()])
