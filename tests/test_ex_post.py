"""Ex-post densities: the fit, what is drawn with them, their scores and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from records import coherence_scores, method_scores, ours_scores, write_run
from reference_methods import RealTuples, ShuffledPairs
from toy_data import ToyData, ToyJudges

from bench.cli import main
from bench.config import Plan, resolve
from bench.errors import UsageError
from bench.evaluate import evaluate
from bench.ex_post import density_samplers
from bench.names import EX_POST
from bench.prior_table import prior_table
from bench.render import render
from bench.store import find_runs
from bench.table import comparison_tables
from datasets.spec import Batch, DataSpec, UserError
from methods.base import Task

PLAN = Plan(joint=200, cross=50, subsets="singles", fid_n=200, metrics=("coherence", "fd_clf", "ex_post"))


class Decodes(RealTuples):
    """Its latent is the digit as a one-hot vector; decodes a latent to tuples of the nearest digit."""

    def decode(self, latent: Mapping[str, torch.Tensor], targets: Sequence[str]) -> Batch:
        digit = latent["z"].argmax(-1)
        rows = torch.stack([(self.labels == d).nonzero()[0, 0] for d in digit])
        return {name: self.take(name, rows) for name in targets}

    # A prior that knows one digit only.
    def joint_generate(self, n: int, sampler: str | None = None, steps: int | None = None) -> Batch:
        return self.decode({"z": torch.eye(10)[torch.full((n,), 3)]}, self.names)


class Blocks(Decodes):
    """The same latent in two pieces, beside a private one. The second says the digit again, negated."""

    def encode(self, given: Batch) -> dict[str, torch.Tensor]:
        z = super().encode(given)["z"]
        return {"z.low": z, "w.a": z[:, :2] + 100, "z.high": -z[:, :7]}

    def decode(self, latent: Mapping[str, torch.Tensor], targets: Sequence[str]) -> Batch:
        assert set(latent) == {"z.low", "z.high"} and latent["z.high"].shape[1] == 7
        torch.testing.assert_close(latent["z.low"][:, :7], -latent["z.high"], atol=0.02, rtol=0)
        return super().decode({"z": latent["z.low"]}, targets)


class Dumb(Decodes):
    """Cannot encode."""

    @classmethod
    def unsupported(cls, spec: DataSpec, task: Task) -> str | None:
        return "no encoder" if task == "encode" else super().unsupported(spec, task)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ToyData(tmp_path_factory.mktemp("toy"))


def scored(cls, data, tmp_path, plan=PLAN):
    method = cls(data.split("train"), data.split("test"))
    return evaluate(method, data, plan, cache=tmp_path, judges=ToyJudges(), batch_size=100, download=False)


def value(evaluation, metric, sampler):
    (found,) = [
        s for s in evaluation.scores if (s.metric, s.sampler, s.target) == (metric, sampler, "")
        and not s.given and not s.attribute
    ]  # fmt: skip
    return found.value


def test_density_and_seed_decide_what_is_drawn(data):
    method = Decodes(data.split("train"), data.split("test"))
    found = density_samplers(method, data.split("train"), device="cpu", seed=5)
    again = density_samplers(method, data.split("train"), device="cpu", seed=5)
    assert list(found) == list(EX_POST)
    for name in found:
        torch.manual_seed(0)
        a = found[name](20)
        torch.manual_seed(0)
        b = again[name](20)
        assert all(torch.equal(a[m], b[m]) for m in data.spec.names)


def test_pieces_of_z_are_fitted_together_and_private_latents_left_to_the_prior(data):
    found = density_samplers(
        Blocks(data.split("train"), data.split("test")), data.split("train"), device="cpu"
    )
    for name in EX_POST:
        assert set(found[name](200)) == set(data.spec.names)


def test_samples_that_nothing_scores_are_refused_before_training():
    with pytest.raises(UserError, match="nothing scores"):
        resolve("mmvae", "polydigits", "quick", ["plan.metrics=ex_post,latent"])


def test_a_method_without_encoder_has_no_such_samples(data, tmp_path):
    method = Dumb(data.split("train"), data.split("test"))
    assert density_samplers(method, data.split("train"), device="cpu") == {}
    assert not any(s.sampler in EX_POST for s in scored(Dumb, data, tmp_path).scores)


def test_scores_show_what_the_prior_costs_and_leave_the_others_as_they_were(data, tmp_path):
    found = scored(Decodes, data, tmp_path)
    plain = scored(Decodes, data, tmp_path, replace(PLAN, metrics=("coherence", "fd_clf")))
    assert [s for s in found.scores if s.sampler not in EX_POST] == plain.scores
    assert value(found, "largest_share", "ancestral") == 1
    for name in EX_POST:
        assert value(found, "largest_share", name) < 0.3 and value(found, "coherence_joint", name) == 1
        assert value(found, "fd_clf_uncond", name) < value(found, "fd_clf_uncond", "ancestral") / 5


def test_a_decoder_that_pairs_at_random_gains_nothing(data, tmp_path):
    class Random(ShuffledPairs):
        def decode(self, latent, targets):
            return {name: self.take(name, self.any_rows(len(latent["z"]))) for name in targets}

    found = scored(Random, data, tmp_path)
    assert all(value(found, "coherence_joint", name) < 0.05 for name in EX_POST)


# -- the table


def with_densities(own, normal, mixture):
    extra = [
        s
        for joint, name in ((normal, "ex_post_normal"), (mixture, "ex_post_mixture"))
        for s in coherence_scores(joint=joint, sampler=name)
        if s.task == "joint"
    ]
    return own + extra + method_scores()


def records(root):
    for seed in (0, 1):
        scores = with_densities(coherence_scores(joint=0.2 + 0.02 * seed), 0.5, 0.6)
        write_run(root, "mmvae", scores, seed=seed)
    # Scored before there were such densities: another seed, and another method.
    write_run(root, "mmvae", coherence_scores(joint=0.9) + method_scores(), seed=2)
    write_run(root, "mopoe", coherence_scores(joint=0.3) + method_scores())
    write_run(root, "ours", with_densities(ours_scores(), 0.55, 0.7))
    return find_runs(root)


def test_the_table_compares_seeds_that_have_both(tmp_path):
    table = prior_table(records(tmp_path), methods=("mmvae", "mopoe", "ours", "cmvae"))
    row = table.row("mmvae")
    assert row.seeds == (0, 1)
    shown = [
        row.cells[f"coherence_joint.{key}"].value for key in ("own", "ex_post_normal", "ex_post_mixture")
    ]
    assert shown == pytest.approx([0.21, 0.5, 0.6])
    assert table.row("ours").cells["coherence_joint.own"].value == pytest.approx(0.55)
    assert table.row("mopoe").cells["coherence_joint.own"].state == "missing"
    assert table.row("cmvae").cells["fd_clf_uncond.ex_post_normal"].state == "missing"
    assert table.row("ours").cells["coherence_joint.ex_post_mixture"].best
    assert table.commands == ["bench run --method mopoe --method cmvae --dataset polydigits --preset quick"]
    assert "mixture of 10" in render(table)


def test_the_table_finds_the_data_that_have_such_scores(tmp_path):
    write_run(tmp_path, "mmvae")
    write_run(tmp_path, "mmvae", with_densities(coherence_scores(), 0.5, 0.6), dataset="shapes")
    table = prior_table(find_runs(tmp_path), methods=("mmvae",))
    assert table.context["dataset"] == "shapes" and table.row("mmvae").seeds == (0,)


def test_a_collapsed_density_is_named_and_wins_nothing(tmp_path):
    one = [s for s in coherence_scores(joint=0.99, sampler="ex_post_normal", share=0.8) if s.task == "joint"]
    write_run(tmp_path, "mmvae", coherence_scores() + one + method_scores())
    cell = prior_table(find_runs(tmp_path)).row("mmvae").cells["coherence_joint.ex_post_normal"]
    assert cell.state == "collapsed" and not cell.best


def test_other_tables_have_no_rows_for_densities(tmp_path):
    (table,) = comparison_tables(records(tmp_path), methods=("mmvae", "mopoe", "ours"))
    assert not any(row.sampler in EX_POST for row in table.rows)
    assert table.row("mmvae").cells["coherence_joint"].value == pytest.approx((0.2 + 0.22 + 0.9) / 3)


def test_without_such_scores_the_table_says_how_to_get_them(tmp_path, capsys):
    write_run(tmp_path, "mmvae")
    with pytest.raises(UsageError, match="bench run --method"):
        prior_table(find_runs(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["table", "priors", "--results", str(tmp_path)])
    assert ended.value.code == 2 and "ex-post" in capsys.readouterr().err


def test_a_method_whose_preset_does_without_densities_has_no_row(tmp_path):
    here = records(tmp_path)
    table = prior_table(here, methods=("mmvae", "mopoe", "ours", "diff_cmvae"))
    assert {row.label for row in table.rows} == {"mmvae", "mopoe", "ours"}
    write_run(tmp_path, "mmvae", with_densities(coherence_scores(), 0.5, 0.6), dataset="shapes")
    write_run(tmp_path, "diff_cmvae", dataset="shapes")
    there = prior_table(find_runs(tmp_path), dataset="shapes", methods=("mmvae", "diff_cmvae"))
    assert [row.label for row in there.rows] == ["mmvae"] and there.commands == []
    one_seed = "One seed each: no interval here holds the difference between seeds."
    assert one_seed in there.notes and one_seed not in table.notes
