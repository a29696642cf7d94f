"""The published numbers: every one retrievable, none lost or changed against the file they came from."""

from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.reference import reference

SHARED = Path(__file__).parents[2] / "shared" / "paper_reference.yaml"


def test_counts():
    book = reference()
    assert len(book.entries) == 183
    assert len(book.reproductions) == 12
    assert len(book.conflicts) == 5
    assert sum(entry.value is None for entry in book.entries) == 8


def test_read_once():
    assert reference() is reference()


@pytest.mark.parametrize(
    ("source", "table", "dataset", "metric", "method", "n_given", "value"),
    [
        ("main", "7", "polymnist", "coherence_joint", "ours", None, 0.594),
        ("main", "7", "polymnist", "coherence_cross", "helvae", None, 0.91),
        ("main", "8", "polymnist", "fid_uncond", "ours_w", None, 17.65),
        ("main", "8", "polymnist", "fid_cond", "mmjsd", None, 178.27),
        ("main", "4", "polymnist", "latent_acc", "mopoe", None, 0.944),
        ("main", "5", "polymnist", "coherence_cross_n", "ours_w", 3, 0.938),
        ("main", "1", "cub", "nfe", "diff_cmvae", None, 251),
        ("main", "1", "cub", "param_overhead", "ours_ebm", None, 2_000_000),
        ("main", "1", "cub", "fid_uncond", "diff_cmvae", None, None),
        ("main", "2", "coco", "fid", "ours_ebm", None, 68.1),
        ("main", "3", "cub", "train_time_s_per_iter", "ours_K30_T60", None, 3.15),
        ("main", "9", "polymnist", "fid_uncond", "mle_ebm_60", None, 101.34),
        ("main", "cub_cond", "cub", "fid_t2i", "diff_cmvae", None, 28.0),
        ("mvebm_slides", "generalised", "polymnist", "coherence_joint", "mvebm_gen", None, 0.878),
        ("moe_ebm_paper", "1", "polymnist", "fid_cond", "moe_ebm_post_ld", None, 90.32),
    ],
)
def test_spot_checks(source, table, dataset, metric, method, n_given, value):
    assert reference().value(source, table, dataset, metric, method, n_given) == value


def test_every_entry_is_found_by_its_own_key():
    book = reference()
    for entry in book.entries:
        found = book.find(
            source=entry.source, table=entry.table, dataset=entry.dataset, metric=entry.metric,
            method=entry.method, n_given=entry.n_given,
        )  # fmt: skip
        assert found == [entry]
        assert entry.source in book.sources
        assert entry.method in book.variants
        assert entry.metric in book.quantities
        part = next(p for p in book.table(f"{entry.source}/{entry.table}") if p.dataset == entry.dataset)
        assert (entry.metric, entry.n_given) in part.columns


def test_names_map_to_runs():
    variants = reference().variants
    assert (variants["ours"].method, variants["ours"].sampler) == ("ours", "ebm")
    assert (variants["ours_gen"].method, variants["ours_gen"].sampler) == ("ours", "gen")
    assert variants["mle_ebm_60"].method == "mle_ebm"
    assert variants["mle_ebm_60"].hyper == {"data_steps": 60}
    assert variants["ours_K60_T30"].hyper == {"data_steps": 60, "latent_steps": 30}
    assert variants["mvebm"].beside == ("mvebm_base", "mvebm_gen")
    assert variants["mopoe"].method == "mopoe" and variants["mopoe"].sampler is None


def test_hyper_parameters_named_by_variants_exist():
    """A row that names hyper-parameters can only ever be filled if the method has them."""
    from bench.config import check_hyper
    from bench.registry import method_names

    for variant in reference().variants.values():
        if variant.hyper and variant.method in method_names():
            check_hyper(variant.method, dict(variant.hyper))


def test_tables_that_report_another_sampler():
    book = reference()
    (seven,), (five,) = book.table("7"), book.table("5")
    assert seven.sampler(book.variants["ours"], "coherence_cross") == "gen"
    assert seven.sampler(book.variants["ours"], "coherence_joint") == "ebm"
    assert five.sampler(book.variants["ours_w"], "coherence_cross_n") == "gen_revised"


def test_order_puts_both_forms_of_mvebm_in_the_place_of_the_row():
    order = reference().order("polymnist")
    assert (
        order.index("mmvaeplus") < order.index("mvebm_base") < order.index("mvebm_gen") < order.index("ours")
    )
    assert reference().order("a data set no paper used") == order


def test_conflicts_and_notes_reach_their_tables():
    book = reference()
    (eight,) = book.table("8")
    assert any("178.27" in text for text in book.conflicts_of(eight))
    assert "inferred" in book.find(table="3", method="ours_K60_T30", source="main")[0].note
    assert book.find(table="3", method="ours_K30_T30", source="main")[0].note == ""


def test_unknown_table_and_field():
    with pytest.raises(UsageError, match="no published table '6'; choose one of 7, 8"):
        reference().table("6")
    with pytest.raises(TypeError, match="year"):
        reference().find(year=2026)


def test_equals_the_file_the_numbers_were_taken_from():
    if not SHARED.exists():
        pytest.skip("the source of the numbers, ../shared/paper_reference.yaml, is not here")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    source = yaml.safe_load(SHARED.read_text(encoding="utf-8"))
    book = reference()
    names = ("source", "table", "dataset", "metric", "method", "n_given")
    wanted = {tuple(e.get(name) for name in names): e["value"] for e in source["entries"]}
    assert {tuple(getattr(e, name) for name in names): e.value for e in book.entries} == wanted
    again = {(r["dataset"], r["metric"], r["method"], r.get("n_given"), r["value"], r.get("paper"))
             for r in source["reproductions"]}  # fmt: skip
    assert {(r.dataset, r.metric, r.method, r.n_given, r.value, r.paper) for r in book.reproductions} == again
    assert {key: book.quantities[key].better for key in source["metrics"]} == {
        key: fields["better"] for key, fields in source["metrics"].items()
    }
    assert {key: list(order) for key, order in book.display_order.items()} == source["display_order"]
