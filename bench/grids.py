"""Picture grids: unconditional and conditional samples (Figures 9, 10), interpolations (6), a run's grid.

All take tensors on any device: images float `[N, C, H, W]` in [0, 1], texts int64 `[N, length]`, which
print as token ids unless `words` turns a row of ids into a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.style import save, styled

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.spec import Batch

Words = Callable[["Tensor"], str]
GAP = 2
"""White pixels between two pictures."""

PAGE = 7.2
"""Inches of width that a figure may take, the text width of a page: larger ones would be scaled down."""

GRID_DPI = 300


@dataclass
class Block:
    """One group of rows under a title: row label -> cells `[columns, ...]`; `apart` rows get a gap below."""

    title: str
    rows: Mapping[str, Tensor]
    apart: Sequence[str] = ()
    columns: Sequence[str] = field(default_factory=tuple)

    @property
    def width(self) -> int:
        return max(len(cells) for cells in self.rows.values())


def picture(image: Tensor, size: int) -> NDArray[np.uint8]:
    """One image `[C, H, W]` as `[size, size, 3]` bytes, enlarged by repeating pixels."""
    from datasets.spec import to_uint8

    array = to_uint8(image.cpu()).numpy().transpose(1, 2, 0)
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    factor = max(1, size // max(array.shape[:2]))
    array = array.repeat(factor, axis=0).repeat(factor, axis=1)[:size, :size, :3]
    canvas = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - array.shape[0]) // 2, (size - array.shape[1]) // 2
    canvas[top : top + array.shape[0], left : left + array.shape[1]] = array
    return canvas


def draw_blocks(
    blocks: Sequence[Block],
    path: Path,
    across: int = 1,
    title: str = "",
    words: Words | None = None,
    kinds: Sequence[str] = ("png", "pdf"),
) -> list[Path]:
    """Blocks of pictures, `across` side by side, with row labels; returns the files written."""
    with styled() as plt:
        size, inch = cell_size(blocks)
        stacks = [blocks[i : i + across] for i in range(0, len(blocks), across)]
        widths = [max(b.width for b in blocks[i::across]) for i in range(min(across, len(blocks)))]
        heights = [max(len(b.rows) + 0.4 * len(b.apart) for b in stack) for stack in stacks]
        margin = 0.065 * max(len(name) for b in blocks for name in b.rows) + 0.12
        inch = min(inch, (PAGE - margin * len(widths)) / sum(widths))
        figure, axes = plt.subplots(
            len(stacks),
            len(widths),
            figsize=(sum(widths) * inch + margin * len(widths), sum(heights) * inch + 0.3 * len(stacks)),
            width_ratios=widths,
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for index, axis in enumerate(axes.flat):
            axis.set_axis_off()
            if index < len(blocks):
                draw_block(axis, blocks[index], size, words)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return save(figure, path, kinds, GRID_DPI)


def cell_size(blocks: Sequence[Block]) -> tuple[int, float]:
    """Pixels and inches of one cell: small pictures are enlarged, so that viewers do not blur them."""
    largest = max((max(c.shape[-2:]) for b in blocks for c in b.rows.values() if c.ndim == 4), default=64)
    factor = max(1, round(84 / largest))
    return largest * factor, 0.42 if largest <= 32 else 0.7


def draw_block(axis: Any, block: Block, size: int, words: Words | None) -> None:
    """Paste the pictures into one canvas and show it; texts are written over blank cells."""
    step = size + GAP * max(1, size // 84)
    most = 9 if cell_size([block])[1] > 0.5 else 6
    rows = list(block.rows.items())
    tops, at = [], 0
    for name, _ in rows:
        tops.append(at)
        at += step + (step * 2 // 5 if name in block.apart else 0)
    canvas = np.full((max(1, at - (step - size)), block.width * step - (step - size), 3), 255, np.uint8)
    for (name, cells), top in zip(rows, tops, strict=True):
        axis.text(-size * 0.12, top + size / 2, name, ha="right", va="center", fontsize=8)
        for column, cell in enumerate(cells):
            left = column * step
            if cell.ndim == 3:
                canvas[top : top + size, left : left + size] = picture(cell, size)
            else:
                text = words(cell) if words else " ".join(str(int(i)) for i in cell)
                _write(axis, text, left + size / 2, top + size / 2, most)
    axis.imshow(canvas, interpolation="antialiased")
    for column, label in enumerate(block.columns):
        axis.text(column * step + size / 2, -size * 0.1, label, ha="center", va="bottom", fontsize=7)
    if block.title:
        axis.set_title(block.title, fontsize=8, pad=14 if block.columns else 3)


def _write(axis: Any, text: str, x: float, y: float, most: int = 6) -> None:
    """A text in a cell, folded, cut to `most` lines where it would not fit."""
    import textwrap

    lines = textwrap.wrap(text, 15)[:most]
    # A `$` is a word of a caption here, not the beginning of a formula.
    axis.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=4, parse_math=False)


def _rows(batch: Mapping[str, Tensor], columns: int | None = None) -> dict[str, Tensor]:
    return {name: cells[:columns].detach().cpu() for name, cells in batch.items()}


def sample_grid(batch: Batch, path: Path, words: Words | None = None) -> Path:
    """A run's grid.png: one row per modality, one column per sample. Writes exactly `path` (a .png)."""
    path = Path(path)
    return draw_blocks([Block("", _rows(batch))], path, words=words, kinds=("png",))[0]


def plot_grid_joint(
    batch: Batch, path: Path, title: str = "unconditional samples", words: Words | None = None
) -> list[Path]:
    """Figure 9: unconditional tuples, one per column, one row per modality."""
    return draw_blocks([Block(title, _rows(batch))], path, words=words)


def plot_grid_cross(
    draws: Mapping[str, tuple[Batch, Batch]],
    path: Path,
    title: str = "",
    words: Words | None = None,
) -> list[Path]:
    """Figure 10: per given modality one block, the given pictures in its top row, the samples below.

    draws: name of the block (`m0`) -> (given, generated), tensors of equal length.
    """
    blocks = []
    for name, (given, generated) in draws.items():
        top = {f"{key} given": cells for key, cells in _rows(given).items()}
        below = _rows(generated)
        blocks.append(Block(f"given {name}", {**top, **below}, apart=list(top)[-1:]))
    across = 1 if len(blocks) == 1 else 2 if len(blocks) <= 4 else 3
    return draw_blocks(blocks, path, across, title, words)


def plot_interpolation(
    paths: Sequence[Batch], path: Path, title: str = "latent interpolation", words: Words | None = None
) -> list[Path]:
    """Figure 6: one block per pair of end points, the steps between them from left to right."""
    blocks = [Block(title if index == 0 else "", _rows(batch)) for index, batch in enumerate(paths)]
    return draw_blocks(blocks, path, words=words)
