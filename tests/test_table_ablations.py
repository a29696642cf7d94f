"""Tables and figures of ablations: the right runs, no others, and the command for what is missing."""

from __future__ import annotations

import math

import pytest
from records import coherence_scores, method_scores, ours_scores, write_run

from bench import losses
from bench.build import build_method
from bench.cli import cli
from bench.config import resolve
from bench.errors import UsageError
from bench.losses import plot_losses
from bench.matching import is_named_again, is_the_preset, needed, row_command
from bench.paper_tables import paper_table
from bench.reference import reference
from bench.registry import method_names
from bench.render import FORMATS, render
from bench.store import find_runs
from bench.summary import defaults
from bench.table import comparison_tables
from datasets.spec import DataSpec, Modality
from metrics.protocol import Score

STEPS = {"data_steps": 10, "latent_steps": 10}


def table_of(root, name, **more):
    return paper_table(name, find_runs(root), **more)


def ours(root, *, flops=None, steps=100, scores=None, **overrides):
    """A run of `ours` as in preset quick, with these overrides."""
    scores = ours_scores() if scores is None else scores
    if flops:
        scores = [*scores, Score("flops_per_step", flops, 1, "lower", attribute="batch 64")]
    folder = write_run(root, "ours", scores, hyper=STEPS, overrides=overrides)
    training(folder, steps)
    return folder


def training(folder, steps):
    import json

    record = json.loads((folder / "run.json").read_text())
    record["training"] = {"steps": steps, "batch_size": 64}
    (folder / "run.json").write_text(json.dumps(record))


def noise_only(root, steps, distance):
    how = {"task": "joint", "sampler": "ebm", "judge": "judge-1"}
    scores = [s for s in coherence_scores(sampler="ebm") if s.task == "joint" and s.metric != "fd_clf_uncond"]
    scores.append(Score("fd_clf_uncond", distance, 1000, "lower", **how))
    changed = {} if steps == 10 else {"data_steps": steps}
    scores += method_scores()
    return write_run(root, "mle_ebm", scores, hyper={"data_steps": 10}, overrides=changed)


# -- Table 9, Table 3 ----------------------------------------------------------------------------------


def test_table_9_finds_every_chain_length_and_nothing_else(tmp_path):
    ours(tmp_path)
    write_run(tmp_path, "mmvae")
    # Chains of `quick` have a third of the paper's length.
    for steps, distance in ((10, 900.0), (20, 800.0)):
        noise_only(tmp_path, steps, distance)
    table = table_of(tmp_path, "9")
    assert [row.label for row in table.rows] == [
        "Ours",
        "MLE EBM, 30 steps",
        "MLE EBM, 60 steps",
        "MLE EBM, 100 steps",
    ]
    column = "fd_clf_uncond"
    assert table.row("MLE EBM, 30 steps").cells[column].value == 900.0
    assert table.row("MLE EBM, 60 steps").cells[column].value == 800.0
    assert table.row("MLE EBM, 60 steps").cells["fid_uncond.published"].value == 101.34
    assert table.row("MLE EBM, 100 steps").cells[column].state == "missing"
    assert table.row("Ours").cells[column].value == pytest.approx(245.0), "sampler ebm"
    assert table.commands == [
        "bench run --method mle_ebm --dataset polydigits --preset quick --set data_steps=33"
    ]
    assert any("MLE EBM, 60 steps by data_steps=20" in note for note in table.notes)


def test_table_3_stands_on_digits_where_nothing_else_was_measured(tmp_path):
    ours(tmp_path)
    ours(tmp_path, data_steps=20)
    ours(tmp_path, latent_steps=20, latent_noise=0.1)
    table = table_of(tmp_path, "3")
    assert len(table.rows) == 5
    row = table.row("Ours, K=60")
    assert table.column("fd_clf_cond_cross").title == "FD-clf cross"
    assert row.cells["fd_clf_cond_cross"].value == pytest.approx(280.0)
    assert row.cells["train_time_s_per_iter"].value == 0.05
    assert row.cells["fid_t2i.published"].value == 25.16
    assert table.row("Ours, K=T=30").cells["fd_clf_cond_cross"].value is not None, "quick itself"
    # Further overrides make another setting, which must not pass for the row.
    assert table.row("Ours, T=60").cells["fd_clf_cond_cross"].state == "missing"
    assert any(c.endswith("--preset quick --set data_steps=3") for c in table.commands)
    assert all("polydigits" in note for note in table.notes if note.startswith("Measured on"))


# -- what each part earns --------------------------------------------------------------------------------


def test_ablations_tell_starts_samplers_and_structures_apart(tmp_path):
    ours(tmp_path)
    ours(tmp_path, scores=ours_scores(0.3, 0.7), data_start="noise")
    ours(tmp_path, scores=ours_scores(0.4, 0.6), latent_start="prior")
    write_run(tmp_path, "indep_generators", ours_scores(0.02, 0.2), hyper=STEPS)
    write_run(tmp_path, "mmvae")
    table = table_of(tmp_path, "ablations")
    assert not any(column.origin == "published" for column in table.columns)
    joint = {row.label: row.cells["coherence_joint"] for row in table.rows}
    assert joint["Ours (EBM)"].value == pytest.approx(0.55)
    assert joint["Ours (Gen)"].value == pytest.approx(0.5)
    assert joint["Ours (EBM), data chain from noise"].value == pytest.approx(0.3)
    assert joint["Ours (Gen), data chain from noise"].value == pytest.approx(0.25)
    assert joint["Ours (EBM), latent chain from the prior"].value == pytest.approx(0.4)
    assert joint["independent generators"].value == pytest.approx(0.02)
    assert joint["independent inference"].state == "missing"
    assert joint["Ours (EBM), both from noise"].state == "missing"
    assert "MMVAE" not in joint
    assert not any(note.startswith("Published") for note in table.notes)
    assert any("--set data_start=noise --set latent_start=prior" in c for c in table.commands)
    assert not any("--method ours " in c and "--set" not in c for c in table.commands), "ours is there"
    for kind in FORMATS:
        assert "data chain from noise" in render(table, kind).replace("\n", " ")


def test_the_vae_part_counts_only_at_equal_flops(tmp_path):
    label = "Ours, VAE part alone, as many operations"
    ours(tmp_path, data_start="noise")
    assert not any("train.flops" in c for c in table_of(tmp_path, "ablations").commands), "unknown yet"
    ours(tmp_path, flops=2e9)
    ours(tmp_path, flops=5e8, warm_start=1.0)
    table = table_of(tmp_path, "ablations")
    assert table.row(label).cells["coherence_joint"].state == "missing", "a quarter of the cost"
    assert table.row("Ours, VAE part alone, as many examples").cells["coherence_joint"].state == "value"
    (command,) = [c for c in table.commands if "warm_start=1" in c]
    assert command.endswith("--set warm_start=1.0 --set train.flops=2e+11")
    ours(tmp_path, flops=5e8, steps=400, **{"warm_start": 1.0, "train.flops": 2e11})
    cell = table_of(tmp_path, "ablations").row(label).cells["coherence_joint"]
    assert cell.value == pytest.approx(0.5), "sampler gen"


@pytest.mark.parametrize(("preset", "again"), [("quick", False), ("fair", False), ("fair-compute", True)])
def test_as_many_examples_has_no_row_where_a_preset_counts_operations(preset, again):
    named = {key: v for key, v in reference().variants.items() if v.ablation}
    repeated = [key for key, v in named.items() if is_named_again(v, named.values(), "polydigits", preset)]
    assert repeated == (["ours_vae_examples"] if again else [])


def test_the_vae_part_has_one_row_where_a_preset_counts_operations(tmp_path):
    write_run(tmp_path, "ours", ours_scores(), preset="fair-compute")
    labels = [row.label for row in table_of(tmp_path, "ablations").rows if "VAE part" in row.label]
    assert labels == ["Ours, VAE part alone, as many operations"]


def test_a_preset_that_counts_operations_needs_no_run_to_count_them_by(tmp_path):
    alone = {"warm_start": 1.0, "own_ends": False, "prior_renewals": 0}
    write_run(tmp_path, "ours", ours_scores(), preset="fair-compute", hyper=STEPS, overrides=alone)
    table = table_of(tmp_path, "ablations")
    assert table.row("Ours, VAE part alone, as many operations").cells["coherence_joint"].state == "value"
    assert not any("warm_start=1" in command for command in table.commands)


def test_a_task_that_a_method_lacks_is_not_missing(tmp_path):
    noise_only(tmp_path, 10, 900.0)
    ours(tmp_path)
    row = table_of(tmp_path, "ablations").row("MLE EBM, 30 steps")
    assert row.cells["coherence_cross"].state == "none" and row.cells["fd_clf_uncond"].value == 900.0


def test_ablations_stay_out_of_other_tables(tmp_path):
    ours(tmp_path)
    ours(tmp_path, data_start="noise")
    ours(tmp_path, latent=16)
    noise_only(tmp_path, 10, 900.0)
    write_run(tmp_path, "mmvae")
    seven = [row.label for row in table_of(tmp_path, "7").rows]
    assert "Ours [latent=16]" in seven
    assert not any("noise" in label or "mle" in label.lower() for label in seven)
    (table,) = comparison_tables(find_runs(tmp_path), methods=["mmvae", "mle_ebm", "indep_inference"])
    labels = [row.label for row in table.rows]
    assert "mmvae" in labels and "ours (ebm)" in labels and "ours (ebm) [latent=16]" in labels
    assert not any("noise" in label or label.startswith(("mle", "indep")) for label in labels)
    assert any(note.startswith("Ablations, 2 runs") for note in table.notes)


def test_further_runs_of_an_ablation_are_not_lost(tmp_path):
    noise_only(tmp_path, 10, 900.0)
    write_run(tmp_path, "mle_ebm", coherence_scores(sampler="ebm"), overrides={"start": "normal"})
    write_run(tmp_path, "mmvae")
    for name in ("9", "ablations"):
        labels = [row.label for row in table_of(tmp_path, name).rows]
        assert labels[-1] == "mle_ebm [start=normal]" and "MMVAE" not in labels


def test_ablations_alone_are_still_shown(tmp_path):
    noise_only(tmp_path, 10, 900.0)
    (table,) = comparison_tables(find_runs(tmp_path), methods=[])
    assert [row.label for row in table.rows] == ["mle_ebm"]


def test_ablations_are_methods_and_settings_that_exist():
    from bench.config import check_hyper

    book = reference()
    assert book.ablations == {"mle_ebm", "indep_generators", "indep_inference"} <= set(method_names())
    for variant in book.variants.values():
        if variant.ablation:
            check_hyper(variant.method, dict(variant.hyper))
            assert needed(variant, "polydigits", "paper") == variant.hyper
            command = row_command(variant, "polydigits", "fair-compute")
            assert command and " --method " in command and "train.flops" not in command


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [
        ("polydigits", "quick"),
        ("polydigits", "fair"),
        ("polydigits", "paper"),
        ("polymnist", "quick"),
        ("shapes", "fair"),
    ],
)
def test_commands_of_missing_ablations_are_not_refused(dataset, preset):
    """What a preset switches on and an ablation cannot have, the ablation switches off."""
    spec, seen = DataSpec(tuple(Modality(f"m{i}", "image", (3, 8, 8)) for i in range(2))), set()
    for key in reference().table("ablations")[0].methods:
        variant = reference().variants[key]
        command = row_command(variant, dataset, preset, flops=1e9)
        if command in seen or is_the_preset(variant, dataset, preset):
            continue
        seen.add(command)
        sets = [words.split()[0] for words in command.split("--set ")[1:]]
        config = resolve(variant.method, dataset, preset, sets)
        build_method(config, spec)  # raises for settings that exclude each other
        have, wanted = {**defaults(variant.method), **config.hyper}, needed(variant, dataset, preset)
        assert {k: have[k] for k in wanted} == wanted, key


def test_what_a_preset_does_anyway_is_no_ablation_of_it(tmp_path):
    own = reference().variants["ours_own"]
    assert is_the_preset(own, "polydigits", "fair") and not is_the_preset(own, "polydigits", "quick")
    assert not is_the_preset(reference().variants["ours_K30_T30"], "polymnist", "paper"), "a row of the paper"
    assert not is_the_preset(reference().variants["ours_ebm"], "polydigits", "fair")
    write_run(
        tmp_path / "base", "mvebm_gen", dataset="polymnist", preset="paper", hyper={"family": "laplace"}
    )
    theirs = paper_table("moe_ebm_paper/2", find_runs(tmp_path / "base")).row("EBM prior, MMVAE+")
    assert theirs.cells["coherence_joint.published"].value == 0.531, "another's row stays"
    for preset in ("quick", "fair"):
        write_run(tmp_path / preset, "ours", ours_scores(), preset=preset)
        labels = [row.label for row in paper_table("ablations", find_runs(tmp_path / preset)).rows]
        assert (own.name in labels) == (preset == "quick")
        assert (reference().variants["ours_broad"].name in labels) == (preset == "fair")


# -- tables of the earlier papers ------------------------------------------------------------------------


def test_tables_of_the_earlier_papers_find_forms_bases_and_samplers(tmp_path):
    for method, joint in (("mvebm_base", 0.7), ("mvebm_gen", 0.8)):
        write_run(tmp_path, method, coherence_scores(joint, 0.85), hyper={"family": "gaussian"})
        laplace = coherence_scores(joint - 0.3, 0.8)
        write_run(tmp_path, method, laplace, overrides={"family": "laplace"})
    before = [s for s in coherence_scores(0.1, 0.6, "pre_ld") if s.task == "cross"]
    write_run(tmp_path, "moe_ebm", coherence_scores(0.5, 0.9, "post_ld") + before + method_scores())
    joint, cross = "coherence_joint", "coherence_cross"
    assert table_of(tmp_path, "mvebm_slides/base").row("MVEBM (base)").cells[joint].value == 0.7
    gen = table_of(tmp_path, "mvebm_slides/generalised").row("MVEBM (generalised)")
    assert gen.cells[joint].value == 0.8 and gen.cells[f"{joint}.published"].value == 0.878
    two = table_of(tmp_path, "moe_ebm_paper/2")
    assert two.row("EBM prior, MMVAE").cells[joint].value == pytest.approx(0.4)
    assert two.row("EBM prior, MMVAE+").cells[joint].value == pytest.approx(0.5)
    assert two.row("MOE-EBM").cells[joint].value == 0.5
    one = table_of(tmp_path, "moe_ebm_paper/1")
    assert one.row("MOE-EBM (pre)").cells[cross].value == 0.6
    assert one.row("MOE-EBM (post)").cells[cross].value == 0.9
    three = table_of(tmp_path, "moe_ebm_paper/3").row("MOE-EBM")
    assert three.cells["fd_clf_uncond"].value == pytest.approx(250.0)


# -- older records ---------------------------------------------------------------------------------------


def test_a_record_older_than_a_hyper_parameter_has_its_default(tmp_path):
    """Seeds of one configuration average, also if one was made before an ablation's switch existed."""
    from bench.summary import groups

    write_run(tmp_path, "ours", ours_scores(), seed=0, finished="2026-01-01T00:00:00")
    new = {"data_start": "generator", "latent_start": "inference"}
    write_run(tmp_path, "ours", ours_scores(), seed=1, hyper=new, finished="2026-02-01T00:00:00")
    (group,) = groups(find_runs(tmp_path))
    assert group.results[0].seeds == (0, 1) and not group.dropped
    write_run(tmp_path, "ours", ours_scores(), seed=2, hyper={"sigma": 0.9}, finished="2026-03-01T00:00:00")
    (group,) = groups(find_runs(tmp_path))
    assert group.results[0].seeds == (2,) and all("sigma" in reason for _, reason in group.dropped)


# -- Figures 2 and 3 -------------------------------------------------------------------------------------


def log(term, level, steps=40):
    lines = [{"kind": "train", "stage": "warm", "step": 5, "epoch": 0, "terms": {"elbo": 9.0}}]
    for i in range(1, steps + 1):
        terms = {term: level + math.sin(i), "loss": 0.0}
        lines.append({"kind": "train", "stage": "revision", "step": 5 + i, "epoch": 0, "terms": terms})
        lines.append({"kind": "val", "stage": "revision", "step": 5 + i, "epoch": 0, "terms": {term: 1e9}})
    return lines


@pytest.fixture
def drawn(monkeypatch):
    seen = []
    real = losses.save

    def spy(figure, *more):
        seen.append(figure)
        return real(figure, *more)

    monkeypatch.setattr(losses, "save", spy)
    return seen


def curves(axis):
    return [line.get_label() for line in axis.lines if not line.get_label().startswith("_")]


def test_figure_2_compares_generators_and_noise(tmp_path, drawn):
    for seed in (0, 1):
        write_run(tmp_path, "ours", ours_scores(), hyper=STEPS, seed=seed, log=log("energy", -1))
    write_run(tmp_path, "ours", ours_scores(), hyper=STEPS, overrides={"sigma": 2.0}, log=log("energy", 5))
    write_run(tmp_path, "indep_generators", ours_scores(), hyper=STEPS, log=log("energy", 0))
    write_run(tmp_path, "indep_generators", ours_scores(), overrides={"data_steps": 15}, log=log("energy", 0))
    write_run(tmp_path, "mle_ebm", ours_scores(), hyper={"data_steps": 10}, log=log("energy", 1))
    files, commands = plot_losses("2", find_runs(tmp_path), tmp_path / "out")
    assert [f.name for f in files] == ["energy-loss-polydigits-quick.png", "energy-loss-polydigits-quick.pdf"]
    left, right = drawn[0].axes
    assert curves(left) == ["Ours, K=10", "independent generators, K=10", "independent generators, K=15"]
    assert curves(right) == ["Ours, K=10", "MLE EBM, K=10"]
    assert len(left.lines) == 4, "two seeds of ours"
    assert max(left.lines[0].get_ydata()) < 1, "validation and the other setting are left out"
    assert min(left.lines[0].get_xdata()) == 6, "the warm start has no energy"
    assert "bench run --method mle_ebm --dataset polydigits --preset quick --set data_steps=20" in commands
    assert not any("--method ours" in command for command in commands)


def test_figure_3_compares_inference(tmp_path, drawn):
    write_run(tmp_path, "ours", ours_scores(), hyper=STEPS, log=log("generator", -1))
    changed = {"latent_steps": 20}
    write_run(tmp_path, "indep_inference", ours_scores(), overrides=changed, log=log("generator", 2))
    _, commands = plot_losses("3", find_runs(tmp_path), tmp_path / "out")
    (axis,) = drawn[0].axes
    assert curves(axis) == ["Ours, T=10", "independent inference, T=20"]
    assert commands == [
        "bench run --method indep_inference --dataset polydigits --preset quick",
        "bench run --method indep_inference --dataset polydigits --preset quick --set latent_steps=33",
    ]


def test_a_figure_without_curves_says_how_to_start(tmp_path):
    write_run(tmp_path, "mmvae", log=log("bound", 0))
    with pytest.raises(UsageError, match="figure 2 shows; start with `bench run --method ours"):
        plot_losses("2", find_runs(tmp_path), tmp_path)


def test_plot_2_names_the_missing_runs_on_stderr(tmp_path):
    from click.testing import CliRunner

    write_run(tmp_path, "ours", ours_scores(), hyper=STEPS, log=log("energy", 0))
    asked = ["plot", "2", "--results", str(tmp_path), "--out", str(tmp_path / "figures")]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0 and (tmp_path / "figures/energy-loss-polydigits-quick.png").is_file()
    assert "missing, `bench run --method indep_generators" in done.stderr
    assert "bench run" not in done.stdout
