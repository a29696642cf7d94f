from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_methods import Copycat, OneTuple, RealTuples, ShuffledPairs
from toy_data import ToyData, ToyJudges

from bench.config import Plan
from bench.encode import encodings
from bench.evaluate import HEADLINES, evaluate, together
from datasets.spec import DataSpec, Modality, Split, UserError
from methods.base import Diverged
from metrics import METRICS
from metrics.protocol import COLLAPSED

PLAN = Plan(
    joint=300,
    cross=200,
    nested=100,
    subsets="nested",
    probe_train=200,
    probe_repeats=2,
    fid_n=400,
    metrics=("coherence", "latent", "fd_clf", "swd", "cost"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ToyData(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(cls, data, cache, plan=PLAN, **how):
    method = cls(data.split("train"), data.split(plan.split))
    how = {"judges": ToyJudges(), "batch_size": 100, "download": False, **how}
    return evaluate(method, data, plan, cache=cache, **how)


def overall(evaluation):
    """Averages by metric (and attribute where there is one)."""
    found = {}
    for s in evaluation.scores:
        if not s.given and not s.target:
            found[f"{s.metric} {s.attribute}".strip() if s.task != "joint" or s.attribute else s.metric] = (
                s.value
            )
    return found


@pytest.fixture(scope="module")
def ceiling(data, cache):
    return run(RealTuples, data, cache)


@pytest.fixture(scope="module")
def chance(data, cache):
    return run(ShuffledPairs, data, cache)


def test_real_tuples_score_at_the_ceiling_of_every_metric(ceiling):
    scores = overall(ceiling)
    assert scores["coherence_joint"] == scores["coherence_ceiling"] == 1
    assert scores["coherence_cross"] == scores["coherence_cross_n n_given=1"] == 1
    assert scores["coherence_cross_n nested n_given=2"] == 1
    assert scores["latent_acc 200 z"] == 1
    assert scores["largest_share"] < 0.2 and scores["digits_present"] == 10
    # Half of the test tuples, or a resampling of them, against all: close to the floor of unseen tuples.
    assert scores["fd_clf_cond"] < 3 * scores["fd_clf_floor"]
    assert scores["fd_clf_uncond"] < 3 * scores["fd_clf_floor"]
    assert max(scores["swd_uncond"], scores["swd_cond_cross"]) < 3 * scores["swd_floor"]


def test_shuffled_pairs_score_at_chance_where_the_pairing_matters(chance, ceiling):
    scores = overall(chance)
    assert scores["coherence_joint"] == pytest.approx(0.01, abs=0.02)  # three equal digits
    assert scores["coherence_cross"] == pytest.approx(0.1, abs=0.04)
    assert scores["latent_acc 200 z"] == pytest.approx(0.1, abs=0.05)
    # Their margins are perfect, so distances between margins cannot tell them from real tuples.
    assert scores["fd_clf_uncond"] < 3 * overall(ceiling)["fd_clf_floor"]
    assert scores["swd_uncond"] < 3 * overall(ceiling)["swd_floor"]
    assert scores["largest_share"] < COLLAPSED


def test_one_tuple_for_ever_is_coherent_but_collapsed(data, cache, ceiling):
    constant = run(OneTuple, data, cache)
    scores = overall(constant)
    assert scores["coherence_joint"] == 1
    assert scores["largest_share"] == 1 and scores["digits_present"] == 1 and scores["digit_entropy"] == 0
    assert scores["coherence_cross"] < 0.25
    assert scores["fd_clf_uncond"] > 20 * overall(ceiling)["fd_clf_uncond"]


def test_a_copy_of_the_input_is_far_from_the_targets(data, cache, ceiling):
    scores, real = overall(run(Copycat, data, cache)), overall(ceiling)
    # The toy judge sees through the change of background; the distance to real targets does not forgive it.
    assert scores["fd_clf_cond_cross"] > 20 * real["fd_clf_cond_cross"]
    assert scores["fd_clf_cond"] == pytest.approx(scores["fd_clf_cond_cross"] * 2 / 3, rel=0.2)
    assert scores["swd_cond_cross"] > 5 * real["swd_cond_cross"]


def test_outcomes_are_bools_of_the_planned_length(ceiling):
    lengths = {k: len(v) for k, v in ceiling.outcomes.items()}
    assert all(v.dtype == np.bool_ for v in ceiling.outcomes.values())
    assert lengths["coherence_joint/ancestral"] == 300
    assert lengths["coherence_cross/ancestral/a/b"] == 200
    assert lengths["coherence_cross/ancestral/a+b/c"] == 100
    assert lengths["latent_acc/a+b+c/200 z/1"] == 400


def test_the_batch_size_does_not_change_the_scores_of_given_samples(data, cache, ceiling):
    # RealTuples' conditional samples are no matter of chance, so batches must not matter either.
    other = run(RealTuples, data, cache, batch_size=33)

    def fixed(evaluation):
        return {
            (s.metric, s.given, s.target, s.attribute): (s.value, s.n, s.low, s.high)
            for s in evaluation.scores
            if s.task in ("cross", "encode")
            and not s.metric.startswith("sampling_")
            and s.metric not in ("nfe", "param_overhead")
        }

    first, second = fixed(ceiling), fixed(other)
    assert first.keys() == second.keys()
    for key, values in first.items():
        for before, after in zip(values, second[key], strict=True):
            assert after == (before if before is None else pytest.approx(before, rel=1e-4, abs=1e-6)), key


def test_same_seed_same_scores(data, cache, chance):
    def numbers(evaluation):
        timed = ("sampling_", "train_time_s_per_iter", "peak_memory_mb")
        return [s for s in evaluation.scores if not s.metric.startswith(timed)]

    again = run(ShuffledPairs, data, cache)
    assert numbers(again) == numbers(chance)
    assert all(np.array_equal(again.outcomes[k], v) for k, v in chance.outcomes.items())
    assert numbers(run(ShuffledPairs, data, cache, seed=1)) != numbers(chance)
    # A metric more or less does not change the others.
    fewer = run(ShuffledPairs, data, cache, plan=replace(PLAN, metrics=("coherence",)))
    assert set(fewer.scores) <= set(chance.scores)


def test_every_subset_when_asked(data, cache):
    plan = replace(PLAN, subsets="all", metrics=("coherence",))
    found = overall(run(RealTuples, data, cache, plan))
    assert found["coherence_cross_n n_given=2"] == 1


def test_scoring_the_validation_split(data, cache):
    found = run(RealTuples, data, cache, replace(PLAN, split="val", metrics=("coherence", "fd_clf")))
    cells = [s for s in found.scores if s.metric == "coherence_cross" and s.given]
    assert {s.n for s in cells} == {100}  # all that there are


def test_unknown_metrics_and_samplers_are_refused(data, cache):
    with pytest.raises(UserError, match="unknown metric 'cohrence'; did you mean 'coherence'"):
        run(RealTuples, data, cache, replace(PLAN, metrics=("cohrence",)))
    with pytest.raises(UserError, match="no sampler 'gen'"):
        run(RealTuples, data, cache, replace(PLAN, samplers=("gen",)))


def test_without_judges_or_weights_every_headline_says_why(data, cache, monkeypatch):
    monkeypatch.delenv("BENCH_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache / "nothing"))
    plan = replace(PLAN, metrics=("coherence", "fd_clf", "fid"))
    found = run(RealTuples, data, cache, plan, judges=None)
    by = {s.metric: s for s in found.scores}
    assert set(by) == {
        name
        for metric in plan.metrics
        for names in HEADLINES[metric].values()
        for name in names
        if not name.endswith("_t2i")  # no captions here
    }
    assert all(s.value is None and s.unavailable for s in found.scores)
    assert "curl" in by["fid_uncond"].unavailable
    assert "judges" in by["coherence_joint"].unavailable and found.judges is None


class Speechless(RealTuples):
    @classmethod
    def unsupported(cls, spec, task):
        return "it has no prior" if task == "joint" else super().unsupported(spec, task)


def test_what_a_method_cannot_do_is_skipped_with_its_reason(data, cache):
    found = run(Speechless, data, cache)
    joint = [s for s in found.scores if s.task == "joint" and s.metric != "coherence_ceiling"]
    assert {s.metric for s in joint} == {"coherence_joint", "fd_clf_uncond", "swd_uncond", "swd_fine_uncond"}
    assert {s.unavailable for s in joint} == {"skipped: it has no prior"}
    assert found.skipped == {"joint": "it has no prior"}
    assert overall(found)["coherence_cross"] == 1


def test_encodings_that_are_not_finite_are_a_divergence(data, cache, monkeypatch):
    monkeypatch.setattr(
        RealTuples, "encode", lambda self, given: {"z": torch.full((len(given["a"]), 2), torch.inf)}
    )
    method = RealTuples(data.split("train"), data.split("test"))
    with pytest.raises(Diverged, match="not finite"):
        encodings(method, data.split("test"), torch.arange(5), ("a",), "test", "cpu")


class Mixed(ToyData):
    """Two pictures and a text, without digit labels."""

    def __init__(self, cache):
        super().__init__(cache)
        self.spec = DataSpec((*ToyData.spec.modalities[:2], Modality("t", "text", (5,), vocabulary=12)))
        self._splits = {k: self._mixed(s) for k, s in self._splits.items()}

    def _mixed(self, split):
        digit = split.labels["digit"]
        stored = {"a": split.stored["a"], "b": split.stored["b"]}
        stored["t"] = torch.stack([digit + 1, torch.arange(len(digit)) % 12, digit, digit, digit], 1)
        return Split(self.spec, stored, {"class": digit})


class MixedReal(RealTuples):
    def take(self, name, rows):
        return self.pool[name][rows] if name == "t" else super().take(name, rows)

    def find(self, given):
        if set(given) == {"t"}:
            # A text alone does not name its tuple; any tuple with the same text will do.
            return torch.tensor([self.rows["t"][row.numpy().tobytes()] for row in given["t"]])
        return super().find({k: v for k, v in given.items() if k != "t"})


def test_pictures_and_text_without_digits_run_through(tmp_path):
    data = Mixed(tmp_path)
    every = tuple(name for name in METRICS if name != "ex_post")  # these tuples are not decoded from latents
    found = run(MixedReal, data, tmp_path, replace(PLAN, metrics=every), judges="find")
    by = {s.metric: s for s in found.scores if not s.given and not s.target}
    assert "no label 'digit'" in by["coherence_joint"].unavailable
    assert "no label 'digit'" in by["fd_clf_cond"].unavailable
    assert by["swd_uncond"].value < 3 * by["swd_floor"].value
    assert by["latent_acc"].value > 0.9  # read off the only label there is
    assert by["sampling_time_s"].value > 0


def test_judges_are_found_trained_and_kept(data, tmp_path, monkeypatch):
    from metrics import judges

    plan = replace(PLAN, metrics=("coherence", "fd_clf"))
    first = run(RealTuples, data, tmp_path, plan, judges="find")
    by = {(s.metric, s.task): s for s in first.scores if not s.given and not s.target}
    assert set(first.judges["accuracy"]) == set(data.spec.names)
    assert by["coherence_joint", "joint"].judge == first.judges["hash"]
    mean = sum(first.judges["accuracy"].values()) / 3
    assert by["judge_accuracy", ""].value == pytest.approx(mean)
    # These judges learn little from so small pictures; what they say of real tuples is what they are worth.
    assert by["coherence_cross", "cross"].value == pytest.approx(mean, abs=0.1)
    assert by["fd_clf_cond", "cross"].value >= 0
    monkeypatch.setattr(judges, "train_digit_classifier", None)  # the second time they come from the cache
    assert run(RealTuples, data, tmp_path, plan, judges="find").judges == first.judges


def test_ex_post_samples_and_what_scores_them_are_computed_together():
    planned = ("coherence", "latent", "fd_clf", "ex_post")
    assert together(("ex_post",), planned) == ("coherence", "fd_clf", "ex_post")
    assert together(("fd_clf",), planned) == ("coherence", "fd_clf", "ex_post")
    assert together(("latent",), planned) == ("latent",)
    assert together((), planned) == ()
    assert together(("fd_clf",), planned[:3]) == ("fd_clf",)
