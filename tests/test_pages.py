"""The tables of the pages under docs/ are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.stem)
def test_tables_show_the_published_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- table: ") == len(pages.BLOCK.findall(text)), "a block does not end"
    assert pages.refreshed(text) == text, "run `python tests/pages.py`"


def test_results_have_tables() -> None:
    blocks = pages.BLOCK.findall((pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 2


def test_cells_say_value_interval_and_state() -> None:
    cell = {"state": "value", "value": "0.8473", "low": "0.8", "high": "0.9", "seeds": "3", "best": "False"}
    assert pages.shown(cell) == "0.847 ± 0.050"
    assert pages.shown(cell | {"seeds": "1"}) == "0.847"
    assert pages.shown(cell | {"best": "True"}) == "**0.847 ± 0.050**"
    assert pages.shown(cell | {"value": "1464.4", "low": "", "high": ""}) == "1,464"
    assert pages.shown(cell | {"value": "1464.4", "low": "1460", "high": "1466"}) == "1,464 ± 3"
    assert pages.shown(cell | {"state": "collapsed"}) == "collapsed"
    assert pages.shown(None) == pages.shown(cell | {"state": "same"}) == "-"


def test_an_unknown_row_or_column_is_an_error() -> None:
    command = "bench table --dataset polydigits --preset quick\n"
    with pytest.raises(KeyError, match="no row 'nobody'"):
        pages.table(command + "columns: coherence_joint\nrows: nobody")
    with pytest.raises(KeyError, match="no column 'beauty'"):
        pages.table(command + "columns: beauty")
