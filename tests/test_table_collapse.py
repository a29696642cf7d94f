"""A sampler that shows one class over and over: named in its row, never marked as best."""

import pytest
from records import coherence_scores, write_run
from test_table import only

from bench.summary import COLLAPSED


@pytest.mark.parametrize("share", [COLLAPSED + 0.01, 0.99])
def test_collapsed_prints_its_name_and_is_never_best(tmp_path, share):
    write_run(tmp_path, "mmvae", coherence_scores(joint=0.2, cross=0.2))
    write_run(tmp_path, "mopoe", coherence_scores(joint=0.99, cross=0.9, share=share))
    write_run(tmp_path, "ours", coherence_scores(joint=0.3, cross=0.3))
    table = only(tmp_path)
    row = table.row("mopoe")
    assert row.cells["coherence_joint"].text(table.column("coherence_joint")) == "collapsed"
    assert row.cells["coherence_joint"].value == pytest.approx(0.99), "the number stays in the data"
    assert not any(row.cells[key].best for key in ("coherence_joint", "fd_clf_uncond"))
    assert table.row("ours").cells["coherence_joint"].best and row.cells["coherence_cross"].best
    note, rule = [note for note in table.notes if "collapsed" in note]
    assert rule == "Joint columns of a collapsed sampler are never marked."
    assert f"{share:.0%}" in note and "mopoe (0.990)" in note


def test_one_collapsed_seed_is_enough(tmp_path):
    write_run(tmp_path, "mopoe", coherence_scores(share=0.12))
    write_run(tmp_path, "mopoe", coherence_scores(share=0.5), seed=1)
    assert only(tmp_path).row("mopoe").cells["coherence_joint"].state == "collapsed"


def test_just_at_the_limit_is_no_collapse(tmp_path):
    write_run(tmp_path, "mopoe", coherence_scores(share=COLLAPSED))
    assert only(tmp_path).row("mopoe").cells["coherence_joint"].state == "value"


def test_only_the_sampler_that_collapsed_is_named(tmp_path):
    scores = coherence_scores(0.9, 0.8, "ebm", share=0.8) + coherence_scores(0.4, 0.7, "gen")
    write_run(tmp_path, "ours", scores)
    table = only(tmp_path)
    assert table.row("ours (ebm)").cells["coherence_joint"].state == "collapsed"
    assert table.row("ours (gen)").cells["coherence_joint"].state == "value"
