"""The PolyMNIST recipe (METHODS 4.1): digits inverted into random crops of photographs.

Shared by `polydigits` (scikit-learn's digits) and the rebuild of `polymnist` (MNIST).
"""

from __future__ import annotations

import numpy as np

from datasets.spec import DataSpec, Modality, UserError

NAMES = ("m0", "m1", "m2", "m3", "m4")
SIDE = 28
THRESHOLD = 128
SPEC = DataSpec(tuple(Modality(name, "image", (3, SIDE, SIDE)) for name in NAMES))


def composite(digits: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Digits over random crops of one photograph: value -> 1 - value where the digit exceeds 128.

    digits `[N, 28, 28]` uint8, background `[H, W, 3]` uint8 -> `[N, 3, 28, 28]` uint8. The upper-left
    corner of a crop is uniform over `[0, W-28) x [0, H-28)`, the upper ends excluded.
    Raises UserError for a photograph that is not larger than 28 x 28.
    """
    height, width = background.shape[:2]
    if min(height, width) <= SIDE:
        raise UserError(f"a background of {width} x {height} pixels is too small: it must exceed 28 x 28")
    x = rng.integers(0, width - SIDE, len(digits))
    y = rng.integers(0, height - SIDE, len(digits))
    windows = np.lib.stride_tricks.sliding_window_view(background, (SIDE, SIDE), axis=(0, 1))
    crops = windows[y, x]
    # 255 - v equals v XOR 255 for a byte, so one pass over the crops does the inversion.
    mask = np.where(digits > THRESHOLD, np.uint8(255), np.uint8(0))
    return np.bitwise_xor(crops, mask[:, None], out=crops)


def exact_pairing(labels: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tuples that share only the label, with every picture used exactly once per modality.

    For each class and modality a fresh permutation of that class; its i-th picture joins tuple i.
    labels `[N]` -> (modality -> picture index `[N]`, label of each tuple `[N]`), ordered by class.
    """
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    source = {name: np.concatenate([rng.permutation(members) for members in classes]) for name in NAMES}
    return source, labels[source[NAMES[0]]]


def balanced_pairing(
    labels: np.ndarray, pictures: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`count` tuples that share only the label and recombine few pictures, the classes equally often.

    labels `[P]` of all pictures, pictures: indices allowed here. Each modality walks through fresh
    permutations of a class until it has enough, so that all pictures serve about equally often.
    Returns (modality -> picture index `[count]`, labels `[count]`), in random order.
    """
    values = np.unique(labels)
    share = [count // len(values) + (i < count % len(values)) for i in range(len(values))]
    order = rng.permutation(count)
    source = {}
    for name in NAMES:
        columns = []
        for value, n in zip(values, share, strict=True):
            members = pictures[labels[pictures] == value]
            rounds = [rng.permutation(members) for _ in range(-(-n // len(members)))]
            columns.append(np.concatenate(rounds)[:n])
        source[name] = np.concatenate(columns)[order]
    return source, labels[source[NAMES[0]]]
