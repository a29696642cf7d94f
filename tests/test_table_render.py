"""Formats: readable in a terminal, escaped in LaTeX and HTML, lossless in CSV."""

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import coherence_scores, method_scores, ours_scores, write_run

from bench.cells import Cell, Column, Row, Table, short_count, span
from bench.errors import UsageError
from bench.render import FORMATS, WIDTH, csv, frame, gathered, latex_escape, read_csv, render
from bench.store import find_runs
from bench.table import comparison_tables


@pytest.fixture
def table(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "ours", ours_scores(0.5 + 0.1 * seed), seed=seed)
        write_run(tmp_path, "mmvae", coherence_scores(0.2) + method_scores(), seed=seed)
    write_run(tmp_path, "mmvae", overrides={"beta": 2.5})
    write_run(tmp_path, "mopoe", coherence_scores(share=0.9))
    write_run(tmp_path, "mmvae", preset="fair")
    (found,) = comparison_tables(find_runs(tmp_path), methods=["ours_w"])
    return found


def odd():
    """A table whose every text holds characters that mean something to some format."""
    column = Column("a_b", r"50% & more_ #1 | {x} $\pi$ <b>", "higher", header="n=1,000")
    row = Row("m_1 [a=b & c|d, <i>]", cells={"a_b": Cell("value", 0.5, 0.4, 0.6, 10, 1, best=True)})
    return Table(
        "T_1 & <script>", [column], [row], notes=["50 % of `x_1` & <y>"], commands=["bench run --set a=1"]
    )


def test_terminal_fits_and_holds_every_number(table):
    text = render(table, "terminal")
    body = text.split("Data:")[0]
    assert max(map(len, body.splitlines())) <= WIDTH
    for row in table.rows:
        assert row.label in body
        for column in table.columns:
            assert table.cell(row, column).text(column) in body
    assert re.search(r"ours \(ebm\) .*0\.550 ± 0\.635\*", body), "mean over two seeds, best, t-interval"
    assert "To fill what is missing:\n  bench run --method ours_w" in text
    assert "Runs that are not in this table:\n  mmvae seed 0" in text


def test_terminal_lines_up(table):
    block = render(table, "terminal").split("\n\n")[1].splitlines()
    rule = next(line for line in block if set(line) == {"-"})
    ends = {len(line) for line in block if line.rstrip().endswith(("1", "2", "seeds")) and line != rule}
    assert ends == {len(rule)}


def test_commands_are_never_folded(table):
    table.commands = ["bench run " + "--method averylongname " * 20]
    assert "  " + table.commands[0].rstrip() in render(table, "terminal")


def test_wide_tables_go_on_below(table):
    blocks = render(table, "terminal").split("\n\n")
    assert "joint" in blocks[1] and "SWD" in blocks[2]
    assert "parameters" in blocks[3] and "ours (gen)" in blocks[3]
    assert "ours_w" in blocks[1] and "ours_w" not in blocks[2], "a row without numbers is not repeated"


def test_markdown_is_a_table_of_equal_rows(table):
    lines = [line for line in render(table, "markdown").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 3}
    assert any("**0.550" in line for line in lines)
    assert render(odd(), "markdown").count(r"\|") == 1


def test_latex_has_booktabs_and_balanced_braces(table):
    text = render(table, "latex")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert r"\textbf{0.550 $\pm$ 0.635}" in text and r"gen\_revised" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert {line.count("&") for line in body} == {len(table.columns) + 1}
    assert all(line.endswith(r"\\") for line in body)
    code = [line for line in text.splitlines() if not line.startswith("%")]
    plain = re.sub(r"\\[{}]", "", "\n".join(code))
    assert plain.count("{") == plain.count("}")


def test_latex_escapes_everything_that_means_something():
    text = render(odd(), "latex")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"50\% \& more\_ \#1 | \{x\} \$\textbackslash{}pi\$ \textless{}b\textgreater{}" in code
    assert not re.search(r"(?<!\\)[#_]", code)


@given(st.text(alphabet=r"\&%$#_{}~^<>[]ab 1", max_size=30))
def test_latex_escape_leaves_no_bare_command_character(text):
    escaped = latex_escape(text)
    for name in (r"\\textbackslash\{\}", r"\\textasciitilde\{\}", r"\\textasciicircum\{\}", r"\\textless\{\}",
                 r"\\textgreater\{\}", r"\{\[\}", r"\{\]\}", r"\\[&%$#_{}]"):  # fmt: skip
        escaped = re.sub(name, "", escaped)
    assert not set(escaped) & set(r"\&%$#_{}~^<>[]")


def test_html_escapes_and_marks_the_best(table):
    text = render(odd(), "html")
    assert "<script>" not in text and "&lt;script&gt;" in text and "<i>" not in text and "<b>" not in text
    assert "font-weight: bold" in render(table, "html")
    assert render(table, "html").count("<tr>") == len(table.rows) + 1


def test_csv_round_trip(table):
    back = read_csv(csv(table))
    wanted = frame(table)
    assert len(back) == len(table.rows) * len(table.columns)
    pd.testing.assert_frame_equal(back, wanted, check_dtype=False, check_exact=True)
    collapsed = back[(back.row == "mopoe") & (back.column == "coherence_joint")].iloc[0]
    assert (collapsed.state, collapsed.value, collapsed.best) == ("collapsed", 0.4, False)
    assert set(back.state) >= {"value", "missing", "same", "collapsed"}
    assert set(back.fingerprint) == {"data-1"} and set(back.preset) == {"quick"}


def test_csv_keeps_a_state_that_looks_like_a_missing_value():
    made = Table("t", [Column("a", "a")], [Row("r", cells={"a": Cell("n/a", note="NaN")})])
    back = read_csv(csv(made))
    assert back.state[0] == "n/a" and back.note[0] == "NaN" and pd.isna(back.value[0])


def test_all_formats_take_an_empty_table():
    for kind in FORMATS:
        render(Table("nothing", [Column("a", "a")], []), kind)


def test_unknown_format():
    with pytest.raises(UsageError, match="no table format 'excel'; choose one of terminal, markdown"):
        render(odd(), "excel")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (9999, "9999"), (10_000, "10.0k"), (123_456, "123k"), (1_234_567, "1.23M"),
                         (2_000_000, "2.00M"), (3.2e9, "3.20G")],
)  # fmt: skip
def test_short_counts(number, text):
    assert short_count(number) == text


def test_spans():
    assert (span([]), span([1000, 1000]), span([500, 1000])) == ("", "1,000", "500-1,000")


def test_rendering_imports_pandas_only_where_it_is_needed():
    import subprocess
    import sys

    code = "import bench.render, bench.table, bench.reference, sys; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_runs_left_out_for_one_reason_share_a_line():
    same = [f"m{i} seed 0 (id{i}): preset fair, another plan (a=1, b=2)" for i in range(5)]
    other = ["x [updates=1:2:1] seed 0 (id): too old", "y seed 1 (id): too old"]
    more = [f"m1 seed {i} (n{i}): preset fair, another plan (a=1, b=2)" for i in (2, 1)]
    names = "m0 seed 0; m1 seeds 0, 1, 2; m2 seed 0; m3 seed 0; m4 seed 0"
    found = gathered([*same, *more, *other])
    assert found == [f"7 runs, preset fair, another plan (a=1, b=2): {names}", *other]
    assert gathered(same[:3]) == same[:3] and gathered([]) == []
