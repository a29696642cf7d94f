"""The tables of the pages under docs/ are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest

COMMAND = "bench table --dataset polydigits --preset quick\n"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.stem)
def test_tables_show_the_published_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert pages.refreshed(text) == text, "run `python tests/pages.py`"


@pytest.mark.parametrize(
    ("name", "tables"), [("results", 2), ("quick", 1), ("ablations", 2), ("priors", 2), ("tuning", 1)]
)
def test_pages_of_results_have_tables(name: str, tables: int) -> None:
    text = (pages.ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert len(pages.BLOCK.findall(text)) == tables


def test_cells_say_value_interval_and_state() -> None:
    cell = {"state": "value", "value": "0.8473", "low": "0.8", "high": "0.9", "best": "False"}
    assert pages.shown(cell) == "0.847 ± 0.050"
    assert pages.shown(cell | {"best": "True"}) == "**0.847 ± 0.050**"
    assert pages.shown(cell | {"best": "True"}, mark=False) == "0.847 ± 0.050"
    assert pages.shown(cell | {"value": "1464.4", "low": "", "high": ""}) == "1,464"
    assert pages.shown(cell | {"value": "1464.4", "low": "1414", "high": "1514"}) == "1,464 ± 50"
    assert pages.shown(cell | {"value": "213", "low": "212.6", "high": "213.4"}) == "213 ± 0.4"
    assert pages.shown(cell | {"state": "collapsed"}) == "collapsed"
    assert pages.shown(cell | {"state": "same"}) == '"'
    assert pages.shown(None) == pages.shown(cell | {"state": "none"}) == "-"


def test_seeds_are_counted_over_the_columns_that_are_shown() -> None:
    row = {key: {"state": "value", "seeds": n} for key, n in (("a", "3"), ("b", "1"), ("c", "2"))}
    row["d"] = {"state": "missing", "seeds": "0"}
    assert pages.seeds(row, ["a", "b"]) == "1 to 3" and pages.seeds(row, ["c", "d"]) == "2"
    assert pages.seeds(row, ["d", "e"]) == "-"


def test_all_rows_are_marked_and_chosen_ones_are_not() -> None:
    assert "**" in pages.table(COMMAND + "columns: fd_clf_uncond")
    chosen = pages.table(COMMAND + "columns: fd_clf_uncond = distance | seeds\nrows: ours (ebm) = us | mmvae")
    head, _, ours, mmvae = chosen.splitlines()
    assert head == "|  | distance | seeds |" and ours.startswith("| us | ") and mmvae.startswith("| mmvae |")
    assert "**" not in chosen


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (COMMAND + "columns: coherence_joint\nrows: nobody", KeyError, "no row 'nobody'"),
        (COMMAND + "columns: beauty", KeyError, "no column 'beauty'"),
        (COMMAND + "columns: coherence_joint\nrow: mmvae", ValueError, "not \\['columns', 'row'\\]"),
        (COMMAND + "columns: a | a", ValueError, "twice"),
        ("bench table --preset quick\ncolumns: coherence_joint", ValueError, "must give --dataset"),
        ("bench run\ncolumns: coherence_joint", ValueError, "no `bench table`"),
    ],
)
def test_a_block_that_asks_for_what_is_not_there_is_an_error(
    spec: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pages.table(spec)


def test_a_block_without_an_end_swallows_nothing() -> None:
    block = f"{pages.OPEN}{COMMAND}columns: coherence_joint\n-->\n"
    with pytest.raises(ValueError, match="does not end"):
        pages.refreshed(f"{block}\nprose\n\n{block}{pages.CLOSE}")
    with pytest.raises(ValueError, match="does not end"):
        pages.refreshed(block)


def test_the_readme_gets_its_table_back() -> None:
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    spoilt = text.replace("polydigits, preset quick\n====", "spoilt\n====", 1)
    assert spoilt != text and pages.reprinted(spoilt) == text
