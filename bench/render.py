"""A table as text: terminal, Markdown, LaTeX (booktabs), CSV (tidy), HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from bench.cells import Cell, Column, Row, Table
from bench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 118
"""Columns of a terminal line; wider tables go on in a second block with the labels repeated."""

FEW = 4
"""Runs left out for the same reason that share a line; fewer have a line each."""


_RUN = re.compile(r"(.+) seed (\d+) \(\w+\)", re.DOTALL)
"""How `bench.footer.run_name` names a run: method and overrides, seed, id."""


def _by_method(runs: Sequence[str]) -> str:
    """`cmvae seeds 0, 1, 2; mmvae seed 0` of the names of runs: no ids, a seed once."""
    seeds: dict[str, set[int]] = {}
    others = []
    for run in runs:
        found = _RUN.fullmatch(run)
        if found:
            seeds.setdefault(found[1], set()).add(int(found[2]))
        else:
            others.append(run)
    named = [
        f"{name} {'seeds' if len(several) > 1 else 'seed'} {', '.join(map(str, sorted(several)))}"
        for name, several in seeds.items()
    ]
    return "; ".join([*named, *others])


def gathered(excluded: Sequence[str]) -> list[str]:
    """Lines `run: reason`, runs with the same reason in one line, by method, from `FEW` on."""
    runs: dict[str, list[str]] = {}
    for line in excluded:
        run, _, reason = line.partition(": ")
        runs.setdefault(reason, []).append(run)
    lines = []
    for reason, names in runs.items():
        if len(names) < FEW:
            lines += [f"{name}: {reason}" for name in names]
        else:
            lines.append(f"{len(names)} runs, {reason}: {_by_method(names)}")
    return sorted(lines)


def render(table: Table, format: str = "terminal") -> str:
    """The table in one of `FORMATS`. Raises UsageError for another format."""
    if format not in FORMATS:
        raise UsageError(f"there is no table format '{format}'; choose one of {', '.join(FORMATS)}")
    return FORMATS[format](table)


def _footer(table: Table, bullet: str = "") -> list[str]:
    """Notes, the commands that fill what is missing, the runs that are left out."""
    lines = [f"{bullet}{note}" for note in table.notes]
    if table.commands:
        lines += ["", "To fill what is missing:", *(f"{bullet or '  '}{c}" for c in table.commands)]
    if table.excluded:
        left_out = gathered(table.excluded)
        lines += ["", "Runs that are not in this table:", *(f"{bullet or '  '}{e}" for e in left_out)]
    return lines


def _heads(table: Table) -> dict[str, list[str]]:
    """Header lines of every column: title with the direction, then the second line."""
    return {c.key: [f"{c.title} {c.arrow}".strip(), *c.header.splitlines()] for c in table.columns}


def _seeds(row: Row) -> str:
    return str(len(row.seeds)) if row.seeds else ""


# -- terminal ----------------------------------------------------------------------------------------


def terminal(table: Table) -> str:
    """Aligned plain text; `*` marks the best value of a column."""

    def shown(cell: Cell, column: Column) -> str:
        return cell.text(column) + ("*" if cell.best else " ")

    blocks = []
    for number, columns in enumerate(_blocks(table, shown)):
        rows = [row for row in table.rows if number == 0 or not row.empty]
        heads = {
            column.key: _wrapped(column, [shown(table.cell(r, column), column) for r in rows])
            for column in columns
        }
        depth = max((len(lines) for lines in heads.values()), default=1)
        for lines in heads.values():
            lines[:0] = [""] * (depth - len(lines))
        grid = [["", *(heads[c.key][i] for c in columns), ""] for i in range(depth)]
        grid[-1][-1] = "seeds"
        grid += [[r.label, *(shown(table.cell(r, c), c) for c in columns), _seeds(r)] for r in rows]
        if not any(row.seeds for row in table.rows):
            grid = [line[:-1] for line in grid]
        blocks.append("\n".join(_aligned(grid, rule_after=depth)))
    title = f"{table.title}\n{'=' * len(table.title)}"
    return "\n\n".join([title, *blocks, "\n".join(_folded(_footer(table)))]).rstrip() + "\n"


def _wrapped(column: Column, cells: Sequence[str]) -> list[str]:
    """Header lines of a column, its title broken at spaces to the width of the cells."""
    width = max([9, *(len(cell) for cell in cells)])
    lines: list[str] = []
    *words, last = column.title.split()
    for word in [*words, f"{last} {column.arrow}".strip()]:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    # A blank keeps the titles over the digits, beside the place of the star.
    return [f"{line} " for line in [*lines, *column.header.splitlines()]]


def _blocks(table: Table, shown: Callable[[Cell, Column], str]) -> list[list[Column]]:
    """Columns that fit side by side, cut where a group ends if all do not fit."""

    def width(columns: Sequence[Column]) -> int:
        total = max([len(row.label) for row in table.rows], default=0) + 7
        for column in columns:
            cells = [shown(table.cell(row, column), column) for row in table.rows]
            total += 2 + max(len(text) for text in [*cells, *_wrapped(column, cells)])
        return total

    parts: list[list[Column]] = [[]]
    for group in dict.fromkeys(column.group for column in table.columns):
        members = [column for column in table.columns if column.group == group]
        if parts[-1] and width([*parts[-1], *members]) > WIDTH:
            parts.append([])
        for column in members:
            if parts[-1] and width([*parts[-1], column]) > WIDTH:
                parts.append([])
            parts[-1].append(column)
    return parts


def _aligned(grid: list[list[str]], rule_after: int) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(len(text) for text in column) for column in zip_longest(*grid, fillvalue="")]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in grid
    ]
    rule = "-" * max(len(line.rstrip()) for line in lines)
    return [line.rstrip() for line in [*lines[:rule_after], rule, *lines[rule_after:]]]


def _folded(lines: list[str]) -> list[str]:
    """Long footer lines folded at spaces; commands stay whole, so that they can be copied."""
    import textwrap

    out: list[str] = []
    for line in lines:
        if line.startswith("  bench ") or not line:
            out.append(line)
        else:
            out += textwrap.wrap(
                line,
                WIDTH - 8,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
            )
    return out


# -- Markdown ----------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A pipe table; bold marks the best value of a column."""

    def shown(row: Row, column: Column) -> str:
        cell = table.cell(row, column)
        text = cell.text(column).replace("|", "\\|")
        return f"**{text}**" if cell.best else text

    heads = _heads(table)
    head = ["method", *("<br>".join(heads[c.key]) for c in table.columns), "seeds"]
    lines = [f"**{table.title}**", "", _pipe(head), _pipe(["---", *["---:"] * (len(table.columns) + 1)])]
    for row in table.rows:
        label = row.label.replace("|", "\\|").replace("_", "\\_")
        lines.append(_pipe([label, *(shown(row, column) for column in table.columns), _seeds(row)]))
    footer = [f"- {note}" for note in table.notes]
    if table.commands:
        footer += ["", "To fill what is missing:", "", "```", *table.commands, "```"]
    if table.excluded:
        left_out = gathered(table.excluded)
        footer += ["", "Runs that are not in this table:", "", *(f"- {line}" for line in left_out)]
    return "\n".join([*lines, "", *footer]) + "\n"


def _pipe(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"


# -- LaTeX -------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "`": r"\textasciigrave{}",
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return re.sub("[" + re.escape("".join(_TEX)) + "]", lambda match: _TEX[match[0]], text)


def latex(table: Table) -> str:
    """A `table` environment in booktabs style, the notes in its caption's place below."""

    def shown(row: Row, column: Column) -> str:
        cell = table.cell(row, column)
        text = latex_escape(cell.text(column))
        return rf"\textbf{{{text}}}" if cell.best else text

    heads = _heads(table)
    wide = len(table.columns) > 5  # more do not fit the width of a page at this size
    lines = [
        r"% needs \usepackage{booktabs,graphicx} and \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        r"\small",
        rf"\caption{{{latex_escape(table.title)}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) + 1)}}}",
        r"\toprule",
        _tex_row(["method", *(latex_escape(heads[c.key][0]) for c in table.columns), "seeds"]),
    ]
    for depth in range(1, max(map(len, heads.values()), default=1)):
        under = [heads[c.key][depth] if depth < len(heads[c.key]) else "" for c in table.columns]
        lines.append(_tex_row(["", *map(latex_escape, under), ""]))
    lines.append(r"\midrule")
    lines += [
        _tex_row([latex_escape(row.label), *(shown(row, column) for column in table.columns), _seeds(row)])
        for row in table.rows
    ]
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    if table.notes:
        lines += ["", r"\medskip", r"\parbox{\linewidth}{\footnotesize"]
        lines += [latex_escape(note) + r"\\" for note in table.notes[:-1]] + [
            latex_escape(table.notes[-1]) + "}"
        ]
    lines.append(r"\end{table}")
    left_out = [f"not in this table: {line}" for line in gathered(table.excluded)]
    lines += [f"% {line}" for line in [*table.commands, *left_out]]
    return "\n".join(lines) + "\n"


def _tex_row(parts: Sequence[str]) -> str:
    return " & ".join(parts) + r" \\"


# -- CSV and HTML ------------------------------------------------------------------------------------


def frame(table: Table) -> pd.DataFrame:
    """The tidy form: one line per cell, with value, interval, n, seeds, state and origin."""
    import pandas as pd

    return pd.DataFrame(table.long())


NUMBERS = ("value", "low", "high", "n")
"""Columns of the tidy form that are empty where there is no number."""


def csv(table: Table) -> str:
    """The tidy form as CSV; `read_csv` is its inverse."""
    return str(frame(table).to_csv(index=False))


def read_csv(text: str) -> pd.DataFrame:
    """Read what `csv` wrote, with the same types (the state `n/a` stays a word)."""
    import io

    import pandas as pd

    columns = pd.read_csv(io.StringIO(text), nrows=0).columns
    words = [name for name in columns if name not in (*NUMBERS, "seeds", "best")]
    blank = {name: [""] for name in NUMBERS}
    types = dict.fromkeys(words, str)
    return pd.read_csv(io.StringIO(text), dtype=types, keep_default_na=False, na_values=blank)


def html_table(table: Table) -> str:
    """A table element styled by pandas, with the notes under it."""
    import pandas as pd

    heads = _heads(table)
    names = [", ".join(heads[c.key]) for c in table.columns]
    data = [[table.cell(row, c).text(c) for c in table.columns] + [_seeds(row)] for row in table.rows]
    shown = pd.DataFrame(data, columns=[*map(html.escape, names), "seeds"])
    best = [
        ["font-weight: bold" if table.cell(row, c).best else "" for c in table.columns] + [""]
        for row in table.rows
    ]
    styles = pd.DataFrame(best, columns=shown.columns)
    labels = [html.escape(row.label) for row in table.rows]
    styler = (
        shown.style.apply(lambda _: styles, axis=None)
        .format(escape="html")
        .relabel_index(labels, axis=0)
        .set_caption(html.escape(table.title))
        .set_table_styles(
            [
                {"selector": "td", "props": "text-align: right; padding: 0 .6em; white-space: nowrap"},
                {"selector": "th.row_heading", "props": "text-align: left"},
            ]
        )
        .set_uuid("bench")
    )
    items = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    parts = [styler.to_html(), f"<ul>{items}</ul>" if items else ""]
    if table.commands:
        parts.append(f"<p>To fill what is missing:</p><pre>{html.escape(chr(10).join(table.commands))}</pre>")
    if table.excluded:
        out = "".join(f"<li>{html.escape(line)}</li>" for line in gathered(table.excluded))
        parts.append(f"<p>Runs that are not in this table:</p><ul>{out}</ul>")
    return "\n".join(part for part in parts if part) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "latex": latex,
    "csv": csv,
    "html": html_table,
}
