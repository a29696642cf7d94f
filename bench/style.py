"""How every figure looks: fonts, colours that colour-blind readers tell apart, markers, saving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.safefiles import atomic, unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")
FILLS = ("full", "none", "left", "bottom", "right", "top")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#7A5195")
"""The palette of Okabe and Ito without its yellow, which print loses, and with a violet instead."""

SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text: editable, searchable
}


@contextmanager
def styled() -> Iterator[Any]:
    """Matplotlib's pyplot without a window, in the look of the suite; figures left open are closed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    look = sns.axes_style("whitegrid")
    with plt.rc_context({**look, **SETTINGS}):
        before = set(plt.get_fignums())
        try:
            yield plt
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker). The marker alone tells them apart too, for print without colour."""
    return dict(zip(dict.fromkeys(methods), zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))


_TIGHT: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05}


def save(figure: Figure, path: Path, kinds: Iterable[str] = ("png", "pdf"), dpi: int = DPI) -> list[Path]:
    """Write a figure as `path` with each ending; returns the files. Raises UserError if it cannot."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in (".png", ".pdf") else path
    written = []
    for kind in kinds:
        target = stem.with_name(f"{stem.name}.{kind}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # No date inside, so that the same numbers give the same file.
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with atomic(target, "--out") as temporary:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata, **_TIGHT)
        except OSError as error:
            raise unwritable(target, error, "--out") from error
        written.append(target)
    return written
