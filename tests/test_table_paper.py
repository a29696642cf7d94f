"""The papers' tables: published numbers complete, measured ones from the right run, never confused."""

import pytest
from records import coherence_scores, method_scores, ours_scores, write_run

from bench.errors import UsageError
from bench.paper_tables import paper_table
from bench.reference import reference
from bench.render import FORMATS, render
from bench.store import find_runs
from metrics.protocol import Score

KNOWN = ("mmvae", "mmvaeplus", "mopoe", "mvebm_base", "mvebm_gen", "ours", "ours_w")
EVERY = list(dict.fromkeys(reference().short_name(table) for table in reference().tables))


def published(root, name="7", **more):
    return paper_table(name, find_runs(root), methods=KNOWN, **more)


def paper_runs(root, **more):
    """Two methods on the paper's data and preset."""
    plain = coherence_scores(0.25, 0.8) + method_scores()
    write_run(root, "mmvae", plain, dataset="polymnist", preset="paper", **more)
    write_run(root, "ours", ours_scores(0.55, 0.85), dataset="polymnist", preset="paper", **more)


@pytest.mark.parametrize("name", EVERY)
def test_every_published_number_is_in_its_table_even_without_runs(tmp_path, name):
    table = published(tmp_path, name)
    cells = [
        table.cell(row, column).value
        for row in table.rows
        for column in table.columns
        if "published" in (column.origin, row.origin)
    ]
    for part in reference().table(name):
        entries = reference().find(source=part.source, table=part.name, dataset=part.dataset)
        assert all(entry.value in cells for entry in entries if entry.value is not None)
    for kind in FORMATS:
        assert len(render(table, kind)) > 200


def test_unknown_table(tmp_path):
    with pytest.raises(UsageError, match="no published table '12'"):
        published(tmp_path, "12")


def test_table_7_takes_joint_from_the_energy_and_cross_from_the_encoder(tmp_path):
    paper_runs(tmp_path)
    row = published(tmp_path).row("Ours")
    assert row.cells["coherence_joint.published"].value == 0.594
    assert row.cells["coherence_joint"].value == pytest.approx(0.55), "sampler ebm"
    assert row.cells["coherence_cross"].value == pytest.approx(0.85), "sampler gen, not ebm (0.80)"


def test_measured_column_of_the_papers_own_setting_is_plain(tmp_path):
    paper_runs(tmp_path)
    assert published(tmp_path).column("coherence_joint").header == "measured\nn=1,000"


@pytest.mark.parametrize(
    ("dataset", "preset"), [("polymnist", "quick"), ("polydigits", "paper"), ("polydigits", "quick")]
)
def test_other_settings_are_named_in_the_column_head(tmp_path, dataset, preset):
    write_run(tmp_path, "mmvae", dataset=dataset, preset=preset)
    table = published(tmp_path)
    assert table.column("coherence_joint").header.startswith(f"measured:\n{dataset},\n{preset}")
    assert table.column("coherence_joint.published").header == "published"
    assert any("not comparable with the published numbers" in note for note in table.notes)


def test_papers_setting_wins_over_a_larger_group(tmp_path):
    paper_runs(tmp_path)
    for method in KNOWN:
        write_run(tmp_path, method, dataset="polymnist", preset="quick")
        write_run(tmp_path, method, dataset="polydigits", preset="paper")
    table = published(tmp_path)
    assert (table.context["dataset"], table.context["preset"]) == ("polymnist", "paper")
    assert published(tmp_path, preset="quick").context["preset"] == "quick"
    assert published(tmp_path, dataset="polydigits").context["dataset"] == "polydigits"


def test_published_and_measured_are_never_ranked_together(tmp_path):
    paper_runs(tmp_path)
    table = published(tmp_path)
    best = {column.key: [row.label for row in table.rows if (c := row.cells.get(column.key)) and c.best]
            for column in table.columns}  # fmt: skip
    assert best["coherence_joint.published"] == ["CMVAE"] and best["coherence_joint"] == ["Ours"]


def test_both_forms_stand_beside_the_unlabelled_row(tmp_path):
    write_run(tmp_path, "mvebm_gen", coherence_scores(0.7, 0.8), dataset="polymnist", preset="paper")
    table = published(tmp_path)
    labels = [row.label for row in table.rows]
    at = labels.index("MVEBM")
    assert labels[at : at + 3] == ["MVEBM", "MVEBM (base)", "MVEBM (generalised)"]
    assert table.row("MVEBM").cells["coherence_joint"].state == "none"
    assert table.row("MVEBM (generalised)").cells["coherence_joint"].value == pytest.approx(0.7)
    assert table.row("MVEBM (base)").cells["coherence_joint"].state == "missing"


def test_missing_has_a_command_and_unwritten_methods_a_note(tmp_path):
    paper_runs(tmp_path)
    table = published(tmp_path)
    assert table.row("MoPoE").cells["coherence_joint"].state == "missing"
    assert table.row("HELVAE").cells["coherence_joint"].state == "none"
    (command,) = table.commands
    assert "--method mopoe" in command and "--method ours " not in command
    assert command.endswith("--dataset polymnist --preset paper")
    assert any(note.startswith("Not a method of this suite yet") and "HELVAE" in note for note in table.notes)


def test_methods_no_paper_has_come_last(tmp_path):
    paper_runs(tmp_path)
    write_run(tmp_path, "mine", dataset="polymnist", preset="paper")
    row = published(tmp_path).rows[-1]
    assert row.label == "mine" and row.cells["coherence_joint"].value == pytest.approx(0.4)
    assert row.cells["coherence_joint.published"].state == "none"


def test_overridden_runs_stand_in_rows_of_their_own(tmp_path):
    write_run(tmp_path, "mmvae", dataset="polymnist", preset="paper", overrides={"beta": 5.0})
    table = published(tmp_path)
    assert table.row("MMVAE").cells["coherence_joint"].state == "missing"
    row = table.row("MMVAE [beta=5]")
    assert row.cells["coherence_joint"].value == pytest.approx(0.4) and row.seeds == (0,)
    assert row.cells["coherence_joint.published"].state == "none"
    assert "--method mmvae" in table.commands[0]


def test_rows_that_name_hyper_parameters_find_their_runs(tmp_path):
    scores = [Score("fid_t2i", 30.0, 1000, "lower", task="cross", sampler="ebm")]
    sixty = {"data_steps": 60, "latent_steps": 30}
    write_run(
        tmp_path, "ours", scores, dataset="cub", preset="paper", overrides={"data_steps": 60}, hyper=sixty
    )
    table = published(tmp_path, "3")
    assert table.row("Ours, K=60").cells["fid_t2i"].value == 30.0
    assert table.row("Ours, K=10").cells["fid_t2i"].state == "missing"
    assert any(command.endswith("--set data_steps=10") for command in table.commands)


def test_table_8_shows_the_stand_in_distance_under_its_own_name(tmp_path):
    paper_runs(tmp_path)
    table = published(tmp_path, "8")
    assert table.column("fd_clf_uncond").title == "FD-clf joint"
    assert "FID" not in table.column("fd_clf_uncond").title
    assert table.row("Ours").cells["fid_uncond.published"].value == 20.12
    assert any(note.startswith("FID joint: not available") for note in table.notes)


def test_table_8_uses_fid_where_it_was_measured(tmp_path):
    scores = [
        *coherence_scores(),
        Score("fid_uncond", 99.0, 1000, "lower", task="joint", sampler="ancestral"),
    ]
    write_run(tmp_path, "mmvae", scores, dataset="polymnist", preset="paper")
    table = published(tmp_path, "8")
    assert table.row("MMVAE").cells["fid_uncond"].value == 99.0
    assert "fd_clf_uncond" not in [column.key for column in table.columns]


def test_a_distance_these_runs_were_not_asked_for_has_no_column(tmp_path):
    write_run(tmp_path, "mmvae", coherence_scores(), dataset="polymnist", preset="paper")
    table = published(tmp_path, "8")
    keys = [column.key for column in table.columns]
    assert "fid_uncond" not in keys and "fd_clf_uncond" in keys
    assert any(n.startswith("FID joint: not among the metrics of these runs") for n in table.notes)


def test_table_4_has_both_probes(tmp_path):
    write_run(tmp_path, "mmvae", coherence_scores() + method_scores(0.8), dataset="polymnist", preset="paper")
    row = published(tmp_path, "4").row("MMVAE")
    assert (row.cells["latent_acc"].value, row.cells["latent_acc_full"].value) == (0.8, pytest.approx(0.85))


def test_table_5_separates_all_subsets_from_the_nested_chain(tmp_path):
    write_run(tmp_path, "ours_w", ours_scores(cross=0.85), dataset="polymnist", preset="paper")
    table = published(tmp_path, "5")
    two = "coherence_cross_n.2"
    assert table.row("Ours-w, published").cells[two].value == 0.93
    assert table.row("Ours-w, measured").cells[two].value == pytest.approx(0.89), "0.87 + 0.02, gen_revised"
    assert table.row("Ours-w, measured, nested chain").cells[two].value == pytest.approx(0.885)
    assert table.row("Ours-w (Gen), measured").cells[two].value < 0.88, "without latent revision, gen"
    assert table.row("MoPoE, MultiVae library").cells[two].value == 0.79
    assert table.row("MVTCAE, quoted by MultiVae").cells["coherence_cross_n.4"].value == 0.86


def test_collapse_shows_in_the_papers_table_too(tmp_path):
    write_run(tmp_path, "mopoe", coherence_scores(0.99, 0.9, share=0.95), dataset="polymnist", preset="paper")
    write_run(tmp_path, "mmvae", coherence_scores(0.2, 0.3), dataset="polymnist", preset="paper")
    write_run(tmp_path, "ours", ours_scores(0.1, 0.2), dataset="polymnist", preset="paper")
    table = published(tmp_path)
    assert table.row("MoPoE").cells["coherence_joint"].state == "collapsed"
    assert table.row("MMVAE").cells["coherence_joint"].best
    # As in the main table: joint samples say nothing about those from given modalities.
    assert not table.row("MoPoE").cells["coherence_joint"].best
    assert table.row("MoPoE").cells["coherence_cross"].best


def test_conflicts_stand_in_the_footer(tmp_path):
    assert any("0.344" in note for note in published(tmp_path).notes)
    assert any("178.27" in note for note in published(tmp_path, "8").notes)


def test_best_seed_is_told_since_the_papers_report_best_of(tmp_path):
    for seed, joint in enumerate((0.2, 0.4)):
        write_run(tmp_path, "mmvae", coherence_scores(joint), dataset="polymnist", preset="paper", seed=seed)
    assert any("Best seed" in note and "MMVAE 0.400" in note for note in published(tmp_path).notes)


def test_seconds_of_two_machines_are_not_ranked(tmp_path):
    slow = [s for s in ours_scores() if s.metric != "train_time_s_per_iter"]
    slow.append(Score("train_time_s_per_iter", 0.5, 50, "lower"))
    where = {"dataset": "polydigits", "preset": "quick"}
    steps = {"data_steps": 10, "latent_steps": 10}
    fewer = {"latent_steps": 3}
    write_run(tmp_path, "ours", ours_scores(), hyper=steps, hardware="machine A", **where)
    write_run(tmp_path, "ours", slow, hyper={**steps, **fewer}, overrides=fewer, **where)
    write_run(tmp_path, "mmvae", hardware="machine C", **where)
    table = paper_table("3", find_runs(tmp_path), methods=KNOWN, dataset="polydigits", preset="quick")
    timed = [c for c in table.columns if c.style == "seconds" and c.origin == "measured"]
    cells = [table.cell(row, column) for row in table.rows for column in timed]
    assert {0.05, 0.5} <= {cell.value for cell in cells} and not any(cell.best for cell in cells)
    (note,) = [note for note in table.notes if note.startswith("Times measured on")]
    assert "machine A" in note and "not ranked" in note and "machine C" not in note
