"""Writes the measured tables of the pages under docs/ from the published records.

    python tests/pages.py

A block of a page names the command whose numbers it shows, the columns and the rows it takes from them:

    <!-- table: bench table ablations --dataset polydigits --preset quick
    columns: coherence_joint | fd_clf_uncond = FD-clf of joint samples
    rows: Ours (EBM) = `ours` (`ebm`) | Ours (Gen)
    -->
    ...
    <!-- /table -->

Columns are keys of `--format csv`, rows its row names; what follows `=` is shown instead. Without `rows:` all
that have a number are shown. `tests/test_pages.py` fails where a page no longer says what the records say.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from functools import cache
from pathlib import Path

from bench.show import tables_text

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(<!-- table: (?P<spec>.*?)-->\n).*?(?P<end><!-- /table -->)", re.DOTALL)

Cells = dict[str, dict[str, dict[str, str]]]
"""row -> column -> line of the CSV."""


@cache
def measured(command: str) -> Cells:
    """The measured cells of `bench table ...` on the published records."""
    words = shlex.split(command)
    if words[:2] != ["bench", "table"]:
        raise ValueError(f"'{command}' is no `bench table`")
    name = words[2] if len(words) > 2 and not words[2].startswith("-") else None
    options = words[2 + (name is not None) :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    text = tables_text(name, PUBLISHED, given.pop("--dataset", None), given.pop("--preset", None), "csv")
    if given:
        raise ValueError(f"'{command}' has options that pages do not know: {', '.join(given)}")
    cells: Cells = {}
    for line in csv.DictReader(io.StringIO(text)):
        if line["origin"] != "published":
            cells.setdefault(line["row"], {})[line["column"]] = line
    return cells


def named(entries: str) -> dict[str, str]:
    """`a | b = B` -> {a: a, b: B}."""
    pairs = [entry.partition("=")[::2] for entry in entries.split("|")]
    return {key.strip(): (shown or key).strip() for key, shown in pairs}


def number(value: float, like: float | None = None) -> str:
    """Three decimals below ten, whole numbers above; those of `like` where it is given."""
    return f"{value:.3f}" if abs(value if like is None else like) < 10 else f"{value:,.0f}"


def shown(cell: dict[str, str] | None) -> str:
    """A cell as the page shows it; an interval where there are several seeds, bold if the table marks it."""
    if cell is None or cell["state"] in ("none", "same"):
        return "-"
    if cell["state"] != "value":
        return cell["state"]
    value = float(cell["value"])
    text = number(value)
    if int(cell["seeds"] or 0) > 1 and cell["low"] and cell["high"]:
        text += f" ± {number((float(cell['high']) - float(cell['low'])) / 2, like=value)}"
    return f"**{text}**" if cell["best"] == "True" else text


def table(spec: str) -> str:
    """The markdown table that a block asks for. Raises KeyError for a row or column that does not exist."""
    command, *lines = (line.strip() for line in spec.strip().splitlines())
    parts = dict(line.split(": ", 1) for line in lines)
    cells = measured(command)
    columns = named(parts["columns"])
    usual = {name: name for name, row in cells.items() if any(row.get(c, {}).get("value") for c in columns)}
    rows = named(parts["rows"]) if "rows" in parts else usual
    known = {column for row in cells.values() for column in row}
    for column in columns.keys() - known:
        raise KeyError(f"`{command}` has no column '{column}', only {', '.join(sorted(known))}")
    titles = {line["column"]: line["title"] for row in cells.values() for line in row.values()}
    heads = [titles[key] if key == name else name for key, name in columns.items()]
    out = [f"| {' | '.join(['', *heads])} |", "|---" * (len(heads) + 1) + "|"]
    for row, name in rows.items():
        if row not in cells:
            raise KeyError(f"`{command}` has no row '{row}', only {', '.join(cells)}")
        out.append(f"| {' | '.join([name, *(shown(cells[row].get(c)) for c in columns)])} |")
    return "\n".join(out) + "\n"


def refreshed(page: str) -> str:
    """A page with every block written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{table(m['spec'])}\n{m['end']}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
