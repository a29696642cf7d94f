"""Writes the measured tables of the README and of the pages under docs/ from the published records.

    python tests/pages.py

A block of a page names the command whose numbers it shows, the columns and the rows it takes from them:

    <!-- table: bench table ablations --dataset polydigits --preset quick
    columns: coherence_joint | fd_clf_uncond = FD-clf of joint samples
    rows: Ours (EBM) = `ours` (`ebm`) | Ours (Gen)
    -->
    ...
    <!-- /table -->

Columns are keys of `--format csv`, and `seeds`; rows are its row names; what follows `=` is shown instead.
Without `rows:` all that were run are shown, and what the command marks is bold. `tests/test_pages.py` fails
where a table of a page no longer says what the records say.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.show import tables_text

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPEN, CLOSE = "<!-- table: ", "<!-- /table -->"
BLOCK = re.compile(rf"({OPEN}(?P<spec>.*?)-->\n).*?{CLOSE}", re.DOTALL)

Line = dict[str, str]
"""A line of the CSV: one cell."""


@cache
def measured(command: str) -> dict[str, dict[str, Line]]:
    """row -> column -> cell, of the measured cells of `bench table ...` on the published records.

    Raises ValueError unless the command names data set and preset, without which tables could mix.
    """
    words = shlex.split(command)
    if words[:2] != ["bench", "table"]:
        raise ValueError(f"'{command}' is no `bench table`")
    name = words[2] if len(words) > 2 and not words[2].startswith("-") else None
    options = words[2 + (name is not None) :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    if sorted(given) != ["--dataset", "--preset"]:
        raise ValueError(f"'{command}' must give --dataset and --preset, and nothing else")
    text = tables_text(name, PUBLISHED, given["--dataset"], given["--preset"], "csv")
    cells: dict[str, dict[str, Line]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        if line["origin"] != "published":
            cells.setdefault(line["row"], {})[line["column"]] = line
    return cells


def named(entries: str) -> dict[str, str]:
    """`a | b = B` -> {a: a, b: B}. Raises ValueError for a name that comes twice."""
    pairs = [entry.partition("=")[::2] for entry in entries.split("|")]
    found = {key.strip(): (shown or key).strip() for key, shown in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"'{entries}' has a name twice")
    return found


def parts_of(spec: str) -> dict[str, dict[str, str]]:
    """The lines `columns: ...` and `rows: ...` of a block."""
    pairs = [line.strip().split(": ", 1) for line in spec.strip().splitlines()]
    keys = [key for key, *_ in pairs]
    if keys not in (["columns"], ["columns", "rows"]):
        raise ValueError(f"a block has `columns:` and may have `rows:`, not {keys}")
    return {key: named(value) for key, value in pairs}


def number(value: float) -> str:
    """Three decimals below ten, whole numbers above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def half(width: float, value: float) -> str:
    """Half of an interval, with one decimal where a whole number would hide it."""
    return f"{width:.1f}" if width < 10 <= abs(value) else number(width)


def shown(cell: Line | None, mark: bool = True) -> str:
    """A cell as the page shows it, bold if the table marks it and `mark`."""
    if cell is None or cell["state"] in ("none", "same"):
        return "-" if cell is None or cell["state"] == "none" else '"'
    if cell["state"] != "value":
        return cell["state"]
    value = float(cell["value"])
    text = number(value)
    if cell["low"] and cell["high"]:
        text += f" ± {half((float(cell['high']) - float(cell['low'])) / 2, value)}"
    return f"**{text}**" if mark and cell["best"] == "True" else text


def seeds(row: dict[str, Line], columns: Iterable[str]) -> str:
    """How many seeds stand behind the values of a row: `3`, or `1 to 3`."""
    counts = [int(row[c]["seeds"]) for c in columns if c in row and row[c]["state"] == "value"]
    return "-" if not counts else " to ".join(str(n) for n in sorted({min(counts), max(counts)}))


def table(spec: str) -> str:
    """The markdown table that a block asks for.

    What the command marks is bold where all its rows are shown. Raises KeyError for a row or column that
    does not exist.
    """
    command, _, rest = spec.strip().partition("\n")
    parts, cells = parts_of(rest), measured(command.strip())
    columns = {key: name for key, name in parts["columns"].items() if key != "seeds"}
    present = {
        name: name
        for name, row in cells.items()
        if any(c in row and row[c]["state"] not in ("missing", "none", "same") for c in columns)
    }
    rows = parts.get("rows", present)
    titles = {line["column"]: line["title"] for row in cells.values() for line in row.values()}
    for key, known, what in [*((c, titles, "column") for c in columns), *((r, cells, "row") for r in rows)]:
        if key not in known:
            raise KeyError(f"`{command}` has no {what} '{key}', only {', '.join(known)}")
    heads = [titles[key] if key == name else name for key, name in columns.items()]
    counted = "seeds" in parts["columns"]
    out = [["", *heads, *["seeds"] * counted]]
    for row, name in rows.items():
        line = [shown(cells[row].get(c), mark="rows" not in parts) for c in columns]
        out.append([name, *line, *[seeds(cells[row], columns)] * counted])
    out.insert(1, ["---"] * len(out[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in out)


def refreshed(page: str) -> str:
    """A page with every block written anew. Raises ValueError for a block without an end."""
    blocks = [m[0] for m in BLOCK.finditer(page)]
    if page.count(OPEN) != len(blocks) or any(block.count(OPEN) > 1 for block in blocks):
        raise ValueError(f"a block does not end with {CLOSE}")
    return BLOCK.sub(lambda m: f"{m[1]}\n{table(m['spec'])}\n{CLOSE}", page)


def reprinted(readme: str) -> str:
    """The README with its first table as `bench table` prints it; `tests/test_readme.py` compares them."""
    start = readme.index("```text\n", readme.index("<!-- run-output -->")) + len("```text\n")
    text = tables_text(None, PUBLISHED, "polydigits", None, "terminal").strip()
    return readme[:start] + text + readme[readme.index("\n```", start) :]


if __name__ == "__main__":
    start = PAGES[0]
    start.write_text(reprinted(start.read_text(encoding="utf-8")), encoding="utf-8")
    for path in PAGES:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
