"""Scenes of one or two shapes: their attributes, captions, parser and pictures (for `shapes`).

A scene is one row of attribute codes. The left slot always holds an object; the right one may hold `none`,
and then all four of its attributes are `none`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.vocabulary import END, LENGTH, PADDING, SPECIAL, Vocabulary

Codes = NDArray[np.int64]

SIDE = 64
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
PLACES = ("top", "middle", "bottom")
COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 220, 40),
    "purple": (140, 50, 170), "orange": (250, 140, 20),
}  # fmt: skip
BACKGROUNDS = {
    "white": (245, 245, 245), "grey": (140, 140, 140), "black": (15, 15, 15), "brown": (95, 60, 35),
}  # fmt: skip
RADII = {"small": 6.5, "large": 10.5}
NONE = "none"

KINDS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "place": PLACES}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **{f"{kind}_1": values for kind, values in KINDS.items()},
    **{f"{kind}_2": (*values, NONE) for kind, values in KINDS.items()},
    "background": tuple(BACKGROUNDS),
}
"""Attribute -> its values; a code is a position in them. `_1` is the left slot, `_2` the right one."""

NAMES = tuple(ATTRIBUTES)

# `=size_1` and the like stand for a word. Which kinds of words follow each other tells the slots apart.
_ONE, _TWO = "=size_1 =colour_1 =shape_1", "=size_2 =colour_2 =shape_2"
TEMPLATES: dict[int, tuple[str, ...]] = {
    1: (
        f"there is a {_ONE} at the =place_1 and nothing else at all to be seen on a =background background",
        f"here stands one {_ONE} near the =place_1 all by itself and far from any other "
        "before a =background wall",
        f"we see the {_ONE} in the =place_1 , the rest of this picture is empty on the =background ground",
        f"picture of a {_ONE} by the =place_1 with no second shape anywhere beside that one "
        "against a =background backdrop",
    ),
    2: (
        f"there is a {_ONE} at the =place_1 and a {_TWO} at the =place_2 on a =background background",
        f"here stands one {_ONE} near the =place_1 beside one {_TWO} near the =place_2 "
        "before a =background wall",
        f"we see the {_ONE} in the =place_1 , the {_TWO} in the =place_2 on the =background ground",
        f"picture of a {_ONE} by the =place_1 with a {_TWO} by the =place_2 against a =background backdrop",
    ),
}
"""Captions by number of objects. They differ in their words and not in where an attribute stands: the text
decoders here choose all words at once. Across layouts their likeliest words would make no sentence, unless a
latent told them the layout, which says nothing about the picture."""

_TEMPLATES = {n: [text.split() for text in texts] for n, texts in TEMPLATES.items()}
_VALUES = [v for values in (*KINDS.values(), tuple(BACKGROUNDS)) for v in values]
_OTHERS = sorted({w for ts in _TEMPLATES.values() for t in ts for w in t if not w.startswith("=")})
VOCABULARY = Vocabulary((*SPECIAL, *_OTHERS, *_VALUES))
_KIND = {VOCABULARY.ids[v]: kind for kind, values in KINDS.items() for v in values}
_KIND |= {VOCABULARY.ids[v]: "background" for v in BACKGROUNDS}
_CODE = {VOCABULARY.ids[v]: i for vs in (*KINDS.values(), tuple(BACKGROUNDS)) for i, v in enumerate(vs)}
_ORDERS = {
    tuple(slot[1:].partition("_")[0] for slot in t if slot.startswith("=")): [s[1:] for s in t if s[0] == "="]
    for ts in _TEMPLATES.values()
    for t in ts
}
"""Kinds of the attribute words in their order -> the attributes they name."""


def draw_scenes(n: int, rng: np.random.Generator) -> Codes:
    """`n` scenes `[n, attributes]`, every attribute uniform; the right slot is empty in a third of them."""
    columns = {
        name: rng.integers(0, len(values) - name.endswith("_2"), n) for name, values in ATTRIBUTES.items()
    }
    alone = rng.random(n) < 1 / 3
    for name in NAMES:
        if name.endswith("_2"):
            columns[name][alone] = len(ATTRIBUTES[name]) - 1
    return np.stack([columns[name] for name in NAMES], axis=1)


def write_captions(scenes: Codes, rng: np.random.Generator) -> Codes:
    """A caption `[n, 32]` of every scene by a random template, as token ids."""
    out = np.full((len(scenes), LENGTH), PADDING, np.int64)
    alone = scenes[:, NAMES.index("shape_2")] == len(SHAPES)
    picks = rng.integers(0, len(TEMPLATES[1]), len(scenes))
    for count, rows in ((1, alone), (2, ~alone)):
        for pick, template in enumerate(_TEMPLATES[count]):
            here = np.flatnonzero(rows & (picks == pick))
            for position, word in enumerate(template):
                if word.startswith("="):
                    name = word[1:]
                    ids = np.array([VOCABULARY.ids.get(v, -1) for v in ATTRIBUTES[name]])
                    out[here, position] = ids[scenes[here, NAMES.index(name)]]
                else:
                    out[here, position] = VOCABULARY.ids[word]
            out[here, len(template)] = END
    return out


def read_captions(tokens: Codes) -> Codes:
    """The scenes `[N, attributes]` that captions `[N, length]` describe; rows of -1 where one cannot be read.

    A caption counts up to its end token. Its attribute words must come in the order of some template;
    which words stand between them is of no matter, but an unknown word or a caption that never ends
    makes it unreadable.
    """
    out = np.full((len(tokens), len(NAMES)), -1, np.int64)
    for row, caption in zip(out, tokens.tolist(), strict=True):
        if END not in caption:
            continue
        said = caption[: caption.index(END)]
        if any(not len(SPECIAL) <= token < len(VOCABULARY) for token in said):
            continue
        meant = [token for token in said if token in _KIND]
        order = _ORDERS.get(tuple(_KIND[token] for token in meant))
        if order is None:
            continue
        for i, name in enumerate(NAMES):
            row[i] = _CODE[meant[order.index(name)]] if name in order else len(ATTRIBUTES[name]) - 1
    return out


def _distance(
    shape: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.float32], r: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How far pixels lie outside a shape of radius r about the origin (below 0: inside), in pixels."""
    circle = np.hypot(x, y) - r
    square = np.maximum(abs(x), abs(y)) - 0.92 * r
    # Pointing up, with its base at 0.8 r: two slanted sides and the base.
    triangle = np.maximum(y - 0.8 * r, (2 * abs(x) - (y + r)) / np.sqrt(np.float32(5)))
    bar = np.maximum(abs(x) - r, abs(y) - 0.32 * r)
    cross = np.minimum(bar, np.maximum(abs(y) - r, abs(x) - 0.32 * r))
    return np.choose(shape, [circle, square, triangle, cross])


def draw_pictures(scenes: Codes, rng: np.random.Generator, chunk: int = 500) -> NDArray[np.uint8]:
    """Pictures `[N, 3, 64, 64]` of scenes: antialiased shapes, jittered in place, size and colour."""
    parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
    return np.concatenate([_draw(part, rng) for part in parts])


def _draw(scenes: Codes, rng: np.random.Generator) -> NDArray[np.uint8]:
    n = len(scenes)
    column = {name: scenes[:, i] for i, name in enumerate(NAMES)}
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + np.float32(0.5)
    shade = rng.integers(-8, 9, (n, 3, 1, 1)).astype(np.float32)
    picture = np.array(list(BACKGROUNDS.values()), np.float32)[column["background"]][:, :, None, None] + shade
    picture = np.broadcast_to(picture, (n, 3, SIDE, SIDE)).copy()
    for slot, centre in (("1", 17.0), ("2", 47.0)):
        there = column[f"shape_{slot}"] < len(SHAPES)

        def jitter(width: float, there: NDArray[np.bool_] = there) -> NDArray[np.float32]:
            return rng.uniform(-width, width, (len(there), 1, 1)).astype(np.float32)

        size = column[f"size_{slot}"].clip(max=len(SIZES) - 1)
        radius = np.array(list(RADII.values()), np.float32)[size][:, None, None] + jitter(0.7)
        place = column[f"place_{slot}"].clip(max=len(PLACES) - 1)
        x = xs - centre - jitter(2.5)
        y = ys - np.array([14.0, 32.0, 50.0], np.float32)[place][:, None, None] - jitter(2.0)
        shape = column[f"shape_{slot}"].clip(max=len(SHAPES) - 1)[:, None, None]
        cover = (0.5 - _distance(shape, x, y, radius)).clip(0, 1) * there[:, None, None]
        colour = np.array(list(COLOURS.values()), np.float32)[
            column[f"colour_{slot}"].clip(max=len(COLOURS) - 1)
        ]
        tone = colour[:, :, None, None] + rng.integers(-12, 13, (n, 3, 1, 1)).astype(np.float32)
        picture += (tone - picture) * cover[:, None]
    return np.rint(picture.clip(0, 255)).astype(np.uint8)
