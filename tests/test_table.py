"""Comparison tables: what may stand side by side, what may not, and what the cells say."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import JUDGES, coherence_scores, method_scores, ours_scores, write_run

from bench.config import resolve
from bench.errors import UsageError
from bench.footer import plan_text
from bench.reference import reference
from bench.store import find_runs
from bench.summary import groups, t_quantile
from bench.table import comparison_tables
from metrics.protocol import Score


def only(root, **chosen):
    """The one table under `root`."""
    (table,) = comparison_tables(find_runs(root), **{"methods": [], **chosen})
    return table


def labels(table):
    return [row.label for row in table.rows]


# -- groups --------------------------------------------------------------------------------------


DIFFERENCES = {
    "fingerprint": {"fingerprint": "data-2"},
    "preset": {"preset": "fair"},
    "metric_version": {"metric_version": "2"},
    "plan": {"plan": {"joint": 10_000}},
    "judge": {"judges": {**JUDGES, "hash": "judge-2"}},
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_runs_that_differ_never_share_a_table(tmp_path, what):
    write_run(tmp_path, "ours", ours_scores())
    write_run(tmp_path, "mopoe")
    write_run(tmp_path, "mmvae", **DIFFERENCES[what])
    table = only(tmp_path)
    assert all(row.method != "mmvae" for row in table.rows)
    (line,) = table.excluded
    said = {"fingerprint": "other data", "preset": "preset fair", "metric_version": "metric version 2",
            "plan": "joint=10000", "judge": "other judges"}  # fmt: skip
    assert line.startswith("mmvae seed 0") and said[what] in line


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.booleans()] * 5), min_size=2, max_size=6, unique=True))
def test_one_table_holds_one_of_everything(tmp_path_factory, choices):
    """However runs differ, those of one group agree in all five respects, and no run is lost."""
    root = tmp_path_factory.mktemp("runs")
    for number, choice in enumerate(choices):
        changes = [DIFFERENCES[name] for name, on in zip(DIFFERENCES, choice, strict=True) if on]
        write_run(root, "mmvae", seed=number, **{k: v for change in changes for k, v in change.items()})
    found = groups(find_runs(root))
    assert sum(len(group.runs) for group in found) == len(choices)
    for group in found:
        seen = {
            (r.record["data"]["fingerprint"], r.record["preset"], r.record["judges"]["hash"],
             r.record["config"]["plan"]["joint"])
            for r in group.runs
        }  # fmt: skip
        assert len(seen) == 1
    table = only(root)
    shown = sum(len(row.seeds) for row in table.rows)
    assert shown + len(table.excluded) == len(choices)


def test_default_is_the_most_complete_group_and_preset_chooses(tmp_path):
    for method in ("mmvae", "mopoe"):
        write_run(tmp_path, method, preset="quick")
    write_run(tmp_path, "ours", preset="fair")
    assert only(tmp_path).context["preset"] == "quick"
    assert labels(only(tmp_path, preset="fair")) == ["ours"]
    with pytest.raises(UsageError, match="no runs of preset 'paper', only of fair, quick"):
        only(tmp_path, preset="paper")


def test_one_table_per_data_set(tmp_path):
    write_run(tmp_path, dataset="polydigits")
    write_run(tmp_path, dataset="polymnist")
    tables = comparison_tables(find_runs(tmp_path), methods=[])
    assert [table.context["dataset"] for table in tables] == ["polydigits", "polymnist"]
    assert [t.context["dataset"] for t in comparison_tables(find_runs(tmp_path), "polymnist")] == [
        "polymnist"
    ]
    with pytest.raises(UsageError, match="no runs of data set 'shapes', only of polydigits, polymnist"):
        comparison_tables(find_runs(tmp_path), "shapes")


def test_no_runs_at_all_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="no runs to tabulate; start one with `bench run"):
        comparison_tables(find_runs(tmp_path))


# -- rows ----------------------------------------------------------------------------------------


def test_overrides_make_another_row(tmp_path):
    write_run(tmp_path, "mmvae")
    write_run(tmp_path, "mmvae", overrides={"beta": 2.5, "train.steps": 10})
    write_run(tmp_path, "mmvae", overrides={"train.checkpoint_every": 7}, seed=1)
    table = only(tmp_path)
    assert labels(table) == ["mmvae", "mmvae [beta=2.5, train.steps=10]"]
    assert table.row("mmvae").seeds == (0, 1), "where checkpoints are written changes no number"


def test_changed_preset_and_repeated_seed_are_not_averaged(tmp_path):
    write_run(tmp_path, "mmvae", hyper={"lr": 1e-3}, finished="2026-01-01")
    write_run(tmp_path, "mmvae", hyper={"lr": 2e-3}, seed=1, finished="2026-01-02")
    write_run(tmp_path, "mmvae", hyper={"lr": 2e-3}, seed=1, finished="2026-01-03")
    table = only(tmp_path)
    assert table.row("mmvae").seeds == (1,)
    assert len(table.excluded) == 2
    assert any("an older configuration of this preset (hyper.lr)" in line for line in table.excluded)
    assert any("the same seed was run again later" in line for line in table.excluded)


def test_precisions_are_rows_of_their_own(tmp_path):
    write_run(tmp_path, "mmvae", precision="fp32")
    write_run(tmp_path, "mmvae", precision="bf16", seed=1)
    assert set(labels(only(tmp_path))) == {"mmvae [precision=fp32]", "mmvae [precision=bf16]"}


def test_order_is_the_papers_and_what_it_does_not_list_stands_before_ours(tmp_path):
    for method in ("zebra", "ours", "alpha", "mvebm_gen", "mmvae", "mopoe"):
        write_run(tmp_path, method)
    assert labels(only(tmp_path)) == ["mopoe", "mmvae", "mvebm_gen", "alpha", "zebra", "ours"]


def test_samplers_are_rows_and_shared_values_stand_once(tmp_path):
    write_run(tmp_path, "ours", ours_scores(joint=0.55, cross=0.85))
    table = only(tmp_path)
    assert labels(table) == ["ours (ebm)", "ours (gen)", "ours (gen_revised)"]
    first, second, third = table.rows
    assert first.cells["latent_acc"].value == pytest.approx(0.9)
    assert second.cells["latent_acc"].state == "same"
    assert (first.cells["nfe"].value, second.cells["nfe"].value) == (31, 1)
    assert third.cells["coherence_joint"].state == "none", "this sampler draws no unconditional tuples"
    assert third.cells["coherence_cross"].value == pytest.approx(0.87)


# -- cells ---------------------------------------------------------------------------------------


def test_interval_over_seeds_is_students_t(tmp_path):
    for seed, joint in enumerate((0.2, 0.3, 0.4)):
        write_run(tmp_path, "mmvae", coherence_scores(joint), seed=seed)
    cell = only(tmp_path).row("mmvae").cells["coherence_joint"]
    half = 4.302652729911275 * 0.1 / 3**0.5  # t(0.975, 2) and the sample deviation 0.1
    assert (cell.value, cell.seeds) == (pytest.approx(0.3), 3)
    assert (cell.low, cell.high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert t_quantile(1) == pytest.approx(12.706204736432095)


def test_one_seed_takes_the_interval_over_examples_and_says_so(tmp_path):
    write_run(tmp_path, "mmvae", coherence_scores(0.4))
    table = only(tmp_path)
    cell = table.row("mmvae").cells["coherence_joint"]
    assert (cell.low, cell.high, cell.n) == (pytest.approx(0.37), pytest.approx(0.43), 1000)
    assert any("over examples where a row has one seed" in note for note in table.notes)
    assert table.column("coherence_joint").header == "n=1,000"


def test_averages_are_taken_not_cells_or_diagnostics(tmp_path):
    """The fixture holds per-cell coherences, per-modality shares, and a `coherent` share of 0.9."""
    write_run(tmp_path, "mmvae", coherence_scores(cross=0.6) + method_scores(latent=0.8))
    cells = only(tmp_path).row("mmvae").cells
    assert cells["coherence_cross"].value == pytest.approx(0.6)
    assert cells["latent_acc"].value == pytest.approx(0.8)
    assert cells["coherence_joint"].state == "value"


def test_best_is_the_best_mean_in_the_right_direction(tmp_path):
    write_run(tmp_path, "mmvae", coherence_scores(joint=0.2, cross=0.7))
    write_run(tmp_path, "mopoe", coherence_scores(joint=0.3, cross=0.6))
    table = only(tmp_path)
    best = {(row.label, key) for row in table.rows for key, cell in row.cells.items() if cell.best}
    assert best == {
        ("mopoe", "coherence_joint"), ("mopoe", "fd_clf_uncond"), ("mopoe", "swd_uncond"),
        ("mmvae", "coherence_cross"), ("mmvae", "coherence_cross_most"), ("mmvae", "fd_clf_cond_cross"),
    }  # fmt: skip


def test_distances_are_named_and_explained(tmp_path):
    write_run(tmp_path, "mmvae")
    table = only(tmp_path)
    assert table.column("swd_uncond").title == "SWD joint" and table.column("swd_uncond").better == "lower"
    assert [note.split(":")[0] for note in table.notes if "distance" in note] == ["FD-clf", "SWD"]


def test_the_most_that_was_given_has_a_column_and_its_subset_is_named(tmp_path):
    write_run(tmp_path, "mmvae", coherence_scores(cross=0.7))
    table = only(tmp_path)
    assert table.column("coherence_cross_most").title == "cross coherence, 4 given"
    assert table.row("mmvae").cells["coherence_cross_most"].value == pytest.approx(0.74)
    note = "cross coherence, 4 given: the first of the data set, one subset only; Table 5 has fewer given."
    assert table.context["plan"].count("subsets=nested") == table.notes.count(note) == 1
    scores = [s for s in coherence_scores() if s.metric != "coherence_cross_n" or "=1" in s.attribute]
    pairs = tmp_path / "pairs"
    write_run(pairs, "mmvae", scores)
    assert "coherence_cross_most" not in only(pairs).rows[0].cells


def test_a_single_row_has_no_best(tmp_path):
    write_run(tmp_path, "mmvae")
    assert not any(cell.best for cell in only(tmp_path).rows[0].cells.values())


def test_values_of_two_judges_never_share_a_column(tmp_path):
    def scores(judge):
        other = [s for s in coherence_scores() if not s.metric.startswith("fd_clf")]
        return [
            *other,
            Score("fid_uncond", 50.0, 1000, "lower", task="joint", sampler="ancestral", judge=judge),
        ]

    for method, judge in (("mmvae", "inception-1"), ("mopoe", "inception-1"), ("ours", "inception-2")):
        write_run(tmp_path, method, scores(judge))
    table = only(tmp_path)
    assert table.row("mmvae").cells["fid_uncond"].value == 50.0
    odd = table.row("ours").cells["fid_uncond"]
    assert (odd.state, odd.value) == ("n/a", None) and "another judge" in odd.note


def test_times_of_two_machines_are_shown_but_not_ranked(tmp_path):
    def scores(seconds):
        extra = Score("sampling_time_s", seconds, 1, "lower", task="joint", sampler="ancestral")
        return [s for s in coherence_scores() if s.metric != "sampling_time_s"] + [extra]

    write_run(tmp_path, "mmvae", scores(0.1), hardware="machine A")
    write_run(tmp_path, "mopoe", scores(0.2), hardware="machine B")
    table = only(tmp_path)
    assert not any(row.cells["sampling_time_s"].best for row in table.rows)
    assert any("machine A" in note and "machine B" in note and "not ranked" in note for note in table.notes)


def test_ablations_without_a_row_have_no_say_in_marks_and_footer(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "mmvae", seed=seed)
        write_run(tmp_path, "ours", ours_scores(), seed=seed)
    ablation = {"updates": "2:1:1"}
    write_run(tmp_path, "ours", ours_scores(), overrides=ablation, hardware="machine B")
    table = only(tmp_path)
    assert {row.overrides for row in table.rows} == {""}
    assert not any("machine B" in note for note in table.notes)
    assert "± is half of the 95 % interval over seeds (Student's t)." in table.notes


def test_a_plan_without_a_choice_of_samplers_is_told_from_one_with_it(tmp_path):
    for method in ("mmvae", "mopoe"):
        write_run(tmp_path, method)
    write_run(tmp_path, "ours", ours_scores(), plan={"samplers": ["ebm"]})
    tables = comparison_tables(find_runs(tmp_path), preset="quick")
    assert any("another evaluation plan (samplers=ebm)" in line for line in tables[0].excluded)
    assert plan_text('{"samplers": null, "joint": 5}', '{"samplers": ["ebm"], "joint": 5}') == "samplers=all"


# -- what is not there ---------------------------------------------------------------------------


def test_missing_methods_have_a_row_and_a_command(tmp_path):
    write_run(tmp_path, "mmvae", seed=0)
    write_run(tmp_path, "mmvae", seed=1)
    write_run(tmp_path, "mopoe", seed=0)
    table = only(tmp_path, methods=["mmvae", "mopoe", "ours", "ours_w"])
    assert {cell.state for cell in table.row("ours").cells.values()} == {"missing"}
    assert table.commands == [
        "bench run --method ours --method ours_w --dataset polydigits --preset quick --seed 0 --seed 1",
        "bench run --method mopoe --dataset polydigits --preset quick --seed 1",
    ]


def test_by_default_every_method_of_the_suite_is_expected(tmp_path):
    from bench.registry import method_names

    write_run(tmp_path, "mmvae")
    (table,) = comparison_tables(find_runs(tmp_path))
    assert {row.method for row in table.rows} == {*method_names(), "mmvae"} - reference().ablations


def test_a_metric_that_was_not_computed_is_missing_and_can_be_filled(tmp_path):
    write_run(tmp_path, "mmvae")
    write_run(tmp_path, "mopoe", coherence_scores(), plan={"metrics": ["coherence"]})
    table = only(tmp_path)
    assert table.row("mopoe").cells["latent_acc"].state == "missing"
    assert table.commands == ["bench run --method mopoe --dataset polydigits --preset quick"]


@pytest.mark.parametrize(
    ("status", "state"),
    [("skipped", "n/a"), ("diverged", "diverged"), ("failed", "failed"), ("running", "running")],
)
def test_runs_that_did_not_end_well(tmp_path, status, state):
    write_run(tmp_path, "mmvae")
    write_run(tmp_path, "ours", status=status, reason="the chain ran away")
    table = only(tmp_path)
    assert {cell.state for cell in table.row("ours").cells.values()} == {state}
    assert any(note.startswith("ours seed 0") and "the chain ran away" in note for note in table.notes)
    assert bool(table.commands) == (status in ("failed", "running")), "nothing new would come of the others"


def test_a_failed_seed_beside_good_ones_is_told(tmp_path):
    write_run(tmp_path, "ours", coherence_scores())
    write_run(tmp_path, "ours", seed=1, status="diverged", reason="energy gap too large")
    table = only(tmp_path)
    assert table.row("ours").seeds == (0,)
    assert any("seed 1" in note and "energy gap too large" in note for note in table.notes)


def test_an_unavailable_metric_gives_its_reason_not_a_column(tmp_path):
    write_run(tmp_path, "mmvae")
    table = only(tmp_path)
    assert "fid_uncond" not in [column.key for column in table.columns]
    assert any(
        note.startswith("FID joint: not available, Inception weights are missing") for note in table.notes
    )


def test_footer_names_data_judges_ceiling_plan(tmp_path):
    write_run(tmp_path, "mmvae")
    text = "\n".join(only(tmp_path).notes)
    for part in ("fingerprint data-1", "m1 has a stand-in background", "m0 0.970 (trained)",
                 "m1 0.960 (official)", "coherence ceiling (joint) 0.830", "joint=1000",
                 "it is not FID"):  # fmt: skip
        assert part in text


def test_a_copy_under_published_counts_once(tmp_path):
    import shutil

    folder = write_run(tmp_path, "mmvae")
    shutil.copytree(folder, tmp_path / "published" / "polydigits" / "mmvae" / folder.name)
    table = only(tmp_path)
    assert table.row("mmvae").seeds == (0,) and table.excluded == []


def test_every_run_is_in_the_table_or_listed_below(tmp_path):
    kinds = itertools.product(("mmvae", "mopoe"), ("quick", "fair"), (0, 1))
    for method, preset, seed in kinds:
        write_run(tmp_path, method, preset=preset, seed=seed)
    table = only(tmp_path)
    assert sum(len(row.seeds) for row in table.rows) == 4 and len(table.excluded) == 4


def test_runs_of_another_budget_are_listed_below_and_never_compared(tmp_path):
    for name, steps in (("mmvae", 100), ("mopoe", 100), ("ours", 150)):
        write_run(tmp_path, name, train={"steps": steps, "batch_size": 64})
    write_run(tmp_path, "mmvaeplus", train={"steps": 10, "batch_size": 64}, overrides={"train.steps": 10})
    (table,) = comparison_tables(find_runs(tmp_path), methods=[])
    assert {row.method for row in table.rows} == {"mmvae", "mopoe", "mmvaeplus"}
    (line,) = [line for line in table.excluded if line.startswith("ours")]
    assert "another training budget (64 x 150 examples)" in line


def test_seeds_average_whatever_the_settings_that_change_no_number(tmp_path):
    # The second record is older than `memory`; the third was asked for with another value of it.
    write_run(tmp_path, "mmvae", train={"memory": 1.0, "validate_every": 5})
    write_run(tmp_path, "mmvae", seed=1)
    write_run(tmp_path, "mmvae", seed=2, train={"memory": 8.0}, overrides={"train.memory": 8.0})
    (table,) = comparison_tables(find_runs(tmp_path), methods=[])
    (row,) = table.rows
    assert row.seeds == (0, 1, 2) and not row.overrides and not table.excluded


def test_one_sentence_names_all_rows_whose_seeds_were_trained_by_other_code(tmp_path):
    for method, codes in (("mmvae", "ab"), ("mopoe", "ac"), ("mvae", "aa")):
        for seed, code in enumerate(codes):
            folder = write_run(tmp_path, method, seed=seed)
            record = json.loads((folder / "run.json").read_text())
            (folder / "run.json").write_text(json.dumps({**record, "code": code}))
    (note,) = [note for note in only(tmp_path).notes if "different versions" in note]
    assert note == "The seeds of mmvae, mopoe were trained with different versions of their code."


def test_no_command_is_printed_whose_run_is_there_with_a_plan_of_its_own(tmp_path):
    common = ("mvae", "mmvae", "mvtcae")
    for method in common:
        write_run(tmp_path, method)
    own = resolve("diff_cmvae", "polydigits", "quick").plan.identity()
    write_run(tmp_path, "diff_cmvae", plan=own)
    (table,) = comparison_tables(find_runs(tmp_path), preset="quick", methods=(*common, "diff_cmvae"))
    assert table.commands == [] and {row.label for row in table.rows} == set(common)
    assert any("diff_cmvae" in line and "another evaluation plan" in line for line in table.excluded)
    # A plan that is not the preset's, old or asked for: the plain command makes a run that belongs here.
    write_run(tmp_path, "mopoe", plan={"joint": 100})
    (table,) = comparison_tables(
        find_runs(tmp_path), preset="quick", methods=(*common, "diff_cmvae", "mopoe")
    )
    assert table.commands == ["bench run --method mopoe --dataset polydigits --preset quick"]
