"""Tables on captioned pictures: FID and CLIP, what stands beside them, what is said without weights."""

from dataclasses import replace

import pytest
from records import coherence_scores, ours_scores, write_run

from bench.measured import NOT_ASKED
from bench.paper_tables import paper_table
from bench.store import find_runs
from bench.table import comparison_tables
from metrics.protocol import Score

KNOWN = ("mmvae", "mmvaeplus", "mopoe", "cmvae", "diff_cmvae", "ours", "ours_w")
NO_FID, NO_CLIP = "the Inception weights are not here; curl A", "the CLIP weights are not here; curl B"
HEADLINES = {
    ("fid_uncond", "joint"): NO_FID,
    ("fid_t2i", "cross"): NO_FID,
    ("clip_uncond", "joint"): NO_CLIP,
    ("clip_t2i", "cross"): NO_CLIP,
    ("clip_i2t", "cross"): NO_CLIP,
}


def attributes(sampler="ancestral", t2i=0.6, i2t=0.7):
    """Agreement in attributes, and sampling times by the protocol."""
    how = {"sampler": sampler, "judge": "judge-1"}
    cells = [("caption", "image", t2i), ("image", "caption", i2t)]
    return [
        Score("attribute_joint", 0.5, 1000, "higher", task="joint", **how),
        Score("attribute_cross", (t2i + i2t) / 2, 500, "higher", task="cross", **how),
        *(Score("attribute_cross", v, 500, "higher", "cross", g, t, **how) for g, t, v in cells),
        Score("sampling_batch_s", 0.4, 10, "lower", "joint", sampler=sampler, attribute="batch 100"),
        Score("sampling_sample_s", 0.004, 10, "lower", "joint", sampler=sampler, attribute="batch 100"),
    ]


def unavailable():
    return [Score(m, None, 0, "", task=task, unavailable=why) for (m, task), why in HEADLINES.items()]


def measured(sampler="ancestral"):
    """FID and CLIP scores, with what real data score."""
    values = {"fid_uncond": 80.0, "fid_t2i": 90.0, "clip_uncond": 0.25, "clip_t2i": 0.26, "clip_i2t": 0.27}
    scores = [
        Score(m, values[m], 500, "", task=task, sampler=sampler, judge="net-1") for m, task in HEADLINES
    ]
    real = [("clip_ceiling", 0.31, "joint"), ("clip_floor", 0.2, "joint"), ("kid_floor", 0.0012, "")]
    scores += [Score(m, v, 900, "", task=task, judge="net-1") for m, v, task in real]
    return [*scores, Score("fid_real_images", 2933.0, 2933, "", judge="net-1")]


def shapes_run(root, method="mmvae", more=(), sampler="ancestral", **how):
    scores = [*coherence_scores(sampler=sampler), *attributes(sampler), *more]
    return write_run(root, method, scores, dataset="shapes", **how)


def table_of(root, name):
    return paper_table(name, find_runs(root), methods=KNOWN)


def keys(table):
    return [column.key for column in table.columns if column.origin == "measured"]


def test_agreement_of_shuffled_pairs_stands_below_the_table(tmp_path):
    for method, value in (("mmvae", 0.41), ("mopoe", 0.3)):
        more = [Score("attribute_joint_shuffled", value, 1000, "", task="joint", sampler="ancestral")]
        shapes_run(tmp_path, method, more=more)
    notes = comparison_tables(find_runs(tmp_path))[0].notes
    (note,) = [n for n in notes if "paired at random" in n]
    assert note == "Attributes joint, the same samples paired at random: mopoe 0.300, mmvae 0.410."


def test_table_1_shows_what_is_unavailable_and_what_stands_beside(tmp_path):
    shapes_run(tmp_path, more=unavailable())
    table = table_of(tmp_path, "1")
    row = table.row("MMVAE")
    for metric, _ in HEADLINES:
        assert row.cells[metric].state == "n/a", metric
    found = {k: row.cells[k].value for k in keys(table) if row.cells[k].state == "value"}
    assert found["fd_clf_uncond"] == 260 and found["fd_clf_cond_cross"] == 300
    assert (found["attribute_joint"], found["attribute_t2i"], found["attribute_i2t"]) == (0.5, 0.6, 0.7)
    assert (found["sampling_batch_s"], found["sampling_sample_s"]) == (0.4, 0.004)
    assert "sampling_time_s" not in found
    notes = " ".join(table.notes)
    assert f"FID T2I, FID joint: n/a, {NO_FID}" in notes
    assert f"CLIP joint, CLIP T2I, CLIP I2T: n/a, {NO_CLIP}" in notes


def test_photographs_have_neither_classifiers_nor_attributes(tmp_path):
    write_run(tmp_path, "mmvae", unavailable(), dataset="cub", preset="quick", judges=None)
    table = table_of(tmp_path, "1")
    assert not {"fd_clf_uncond", "fd_clf_cond_cross", "attribute_joint"} & set(keys(table))
    assert table.row("MMVAE").cells["clip_t2i"].state == "n/a"


def test_table_1_with_weights_needs_no_stand_in(tmp_path):
    shapes_run(tmp_path, "ours", [*measured("ebm"), *ours_scores()], sampler="ebm")
    table = table_of(tmp_path, "1")
    row = table.row("Ours (EBM)")
    assert row.cells["fid_t2i"].value == 90 and row.cells["clip_i2t"].value == 0.27
    assert not {"fd_clf_uncond", "fd_clf_cond_cross", "attribute_joint"} & set(keys(table))
    assert table.row("Ours (Gen)").cells["clip_i2t"].state in ("none", "missing")
    (real,) = [note for note in table.notes if note.startswith("Real data")]
    for text in ("clip ceiling (joint n=900) 0.310", "clip floor (joint n=900) 0.200"):
        assert text in real
    assert "kid floor (n=900) 0.0012" in real and "fid real images 2,933" in real


@pytest.mark.parametrize("name", ["1", "2", "cub"])
def test_runs_that_were_not_asked_say_so(tmp_path, name):
    shapes_run(tmp_path)
    table = table_of(tmp_path, name)
    assert {c.note for c in (table.rows[-1].cells[k] for k in keys(table)) if c.state == "n/a"} == {NOT_ASKED}
    assert any("FID" in note and "not among the metrics" in note for note in table.notes)


def test_table_2_shows_both_meanings_of_fid_and_a_stand_in_once(tmp_path):
    shapes_run(tmp_path, "mmvaeplus", unavailable())
    table = table_of(tmp_path, "2")
    found = [key.partition(".")[2] for key in keys(table)]
    assert found == ["fid_uncond", "fd_clf_uncond", "fid_t2i", "fd_clf_cond_cross"]
    published = [column.title for column in table.columns if column.origin == "published"]
    assert published == ["cub256 FID", "coco FID"]
    for dataset in ("cub256", "coco"):
        write_run(tmp_path, "mmvaeplus", measured(), dataset=dataset, preset="paper", judges=None)
    titles = [c.title for c in table_of(tmp_path, "2").columns if c.origin == "measured"]
    assert titles == ["cub256 FID joint", "cub256 FID T2I", "coco FID joint", "coco FID T2I"]


def test_cub_stands_for_the_table_beside_figure_1(tmp_path):
    shapes_run(tmp_path, more=measured())
    assert table_of(tmp_path, "cub").title == table_of(tmp_path, "main/cub_cond").title
    row = table_of(tmp_path, "cub").row("MMVAE")
    assert (row.cells["fid_t2i.published"].value, row.cells["fid_t2i"].value) == (232.2, 90)


def test_comparison_names_every_unavailable_score_in_one_sentence(tmp_path):
    shapes_run(tmp_path, more=unavailable())
    (table,) = comparison_tables(find_runs(tmp_path), methods=[])
    assert f"FID joint, FID T2I: not available, {NO_FID}" in table.notes
    assert f"CLIP joint, CLIP T2I, CLIP I2T: not available, {NO_CLIP}" in table.notes


def test_fid_given_a_caption_has_one_column(tmp_path):
    same = [replace(s, metric="fid_cond_cross") for s in measured() if s.metric == "fid_t2i"]
    shapes_run(tmp_path, more=[*measured(), *same])
    (table,) = comparison_tables(find_runs(tmp_path), methods=[])
    titles = [column.title for column in table.columns]
    assert "FID T2I" in titles and "FID cross" not in titles
