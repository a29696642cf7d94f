"""The lists of methods, data sets and metrics. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.glance import Unclear, method_attributes
from bench.registry import dataset_names, method_files
from metrics import METRICS

ATTRIBUTES = ("latents", "samplers", "chains", "citation")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, aligned; the first is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def methods_text() -> str:
    """Every method: its ways to sample, its chains, its source."""
    rows = [["method", "latents", "samplers", "chains", "source"]]
    for name, path in method_files().items():
        try:
            rows.append(_row(name, method_attributes(path, ATTRIBUTES)) if path else _loaded_row(name))
        except Unclear:
            rows.append(_loaded_row(name))
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return columns([[row[i] for i in used] for row in rows])


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    latents = found["latents"] if isinstance(found["latents"], str) else ""
    return [name, latents, ", ".join(found["samplers"]), ", ".join(found["chains"]), found["citation"]]


def _loaded_row(name: str) -> list[str]:
    """The row of a method whose source alone does not tell, or of a plug-in: its class is imported."""
    from bench.registry import load_method_class
    from datasets.spec import UserError

    try:
        kind = load_method_class(name)
    except UserError as error:
        return [name, "", "", "", f"cannot be loaded: {error}"]
    return _row(name, {attribute: getattr(kind, attribute) for attribute in ATTRIBUTES})


def datasets_text() -> str:
    """Every data set with its presets."""
    from bench.preset_files import preset_names

    rows = [["data set", "presets"]]
    rows += [[name, ", ".join(preset_names(name))] for name in dataset_names()]
    return columns(rows)


def metrics_text() -> str:
    """Every family of metrics."""
    return columns([["metric", "what it measures"], *([name, text] for name, text in METRICS.items())])
