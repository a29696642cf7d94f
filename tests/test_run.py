"""Whole runs: reuse, twins, failures beside successes, records, loading back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import DATA, METHOD, counted_trainings, go, options_in, record
from tiny import TinyVAE

import bench.job
import bench.scoring
from bench.build import find_run
from bench.errors import UsageError
from bench.job import Options
from bench.progress import Reporter
from bench.publish import publish
from bench.run import load_run, rescore
from bench.store import RunFolder, find_runs
from datasets.spec import UserError
from metrics.protocol import Score


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return options_in(tmp_path)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_trainings(monkeypatch)


def test_a_record_says_what_a_reader_needs(options: Options) -> None:
    (outcome,) = go(options)
    assert outcome.status == "done" and not outcome.failed
    found = record(outcome)
    keys = "schema run_id method dataset preset seed status reason overrides config data judges versions"
    keys += " hardware git precision fingerprints parameters timing started finished"
    assert set(keys.split()) <= set(found)
    assert (found["status"], found["method"], found["dataset"], found["seed"]) == ("done", METHOD, DATA, 0)
    assert found["run_id"] == outcome.folder.name
    method, _, _ = load_run(outcome.folder, options)
    assert found["parameters"]["total"] == sum(p.numel() for p in method.parameters())
    assert set(found["fingerprints"]) == {"train", "scores"}
    assert set(found["fingerprints"]["scores"]) == {"latent"}
    assert str(options.results) not in (outcome.folder / "run.json").read_text()
    names = {p.name for p in outcome.folder.iterdir()}
    expected = "run.json scores.json outcomes.npz train.jsonl grid.png weights.safetensors"
    assert set(expected.split()) <= names
    assert "checkpoint.pt" not in names and "error.txt" not in names
    (read,) = find_runs(options.results)
    assert {s.metric for s in read.scores} == {"latent_acc"}
    stored = json.loads((outcome.folder / "scores.json").read_text())
    assert stored["schema"] == 1 and stored["metric_version"] and stored["plan"]["joint"] == 1000


def test_done_is_reused_and_force_is_not(options: Options, trainings: list[int]) -> None:
    first, second = go(options)[0], go(options)[0]
    assert trainings == [0] and second.reused and second.folder == first.folder
    forced = go(dataclasses.replace(options, force=True))[0]
    assert trainings == [0, 0] and not forced.reused


def test_a_new_metric_never_retrains(options: Options, trainings: list[int]) -> None:
    first = go(options)[0]
    before = find_runs(options.results)[0].scores
    second = go(options, "plan.metrics=latent,cost")[0]
    assert trainings == [0] and second.folder == first.folder and not second.reused
    after = find_runs(options.results)[0].scores
    assert [s for s in after if s.metric == "latent_acc"] == before
    assert {"parameters", "nfe"} <= {s.metric for s in after}
    assert go(options, "plan.metrics=latent,cost")[0].reused


def test_another_plan_takes_the_weights_over(options: Options, trainings: list[int]) -> None:
    first, second = go(options)[0], go(options, "plan.probe_train=30")[0]
    assert trainings == [0] and first.folder != second.folder
    weights = [RunFolder(o.folder).load_weights() for o in (first, second)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert record(second)["training"] == record(first)["training"]


def test_another_metric_version_scores_again(
    options: Options, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(options)
    for module in (bench.job, bench.scoring):
        monkeypatch.setattr(module, "METRIC_VERSION", "test")
    again = go(options)[0]
    assert trainings == [0] and not again.reused
    assert json.loads((again.folder / "scores.json").read_text())["metric_version"] == "test"


def test_what_could_not_be_had_is_asked_for_again(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [Score("latent_acc", None, 0, "higher", task="encode", unavailable="weights are missing")]
    original = bench.scoring.evaluate

    def poor(*args: Any, **keys: Any) -> Any:
        return dataclasses.replace(original(*args, **keys), scores=missing)

    with monkeypatch.context() as patch:
        patch.setattr(bench.scoring, "evaluate", poor)
        assert go(options)[0].status == "done"
    assert not go(options)[0].reused
    assert all(s.value is not None for s in find_runs(options.results)[0].scores)


def test_several_seeds_and_methods_go_on_after_a_failure(options: Options) -> None:
    outcomes = go(options, "crash=5", seeds=(0, 1)) + go(options, seeds=(0, 1))
    assert [o.status for o in outcomes] == ["failed", "failed", "done", "done"]
    assert "KeyError" in outcomes[0].reason and "a planted fault" in outcomes[0].reason
    assert "Traceback" in (outcomes[0].folder / "error.txt").read_text()
    assert record(outcomes[0])["status"] == "failed"
    mixed = go(options, methods=("tiny:Refuses", METHOD))
    assert [o.status for o in mixed] == ["skipped", "done"] and not any(o.failed for o in mixed)
    assert "needs captions" in record(mixed[0])["reason"]


def test_a_failed_run_goes_on_where_it_stopped(
    options: Options, monkeypatch: pytest.MonkeyPatch, trainings: list[int]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(bench.scoring, "evaluate", broken)
        assert go(options)[0].status == "failed"
    assert go(options)[0].status == "done" and trainings == [0]


def test_divergence_is_recorded_and_starts_over(options: Options, trainings: list[int]) -> None:
    outcome = go(options, "explode=3", "train.checkpoint_every=2")[0]
    assert (outcome.status, record(outcome)["status"]) == ("diverged", "diverged") and outcome.failed
    assert "not finite" in record(outcome)["reason"]
    names = {p.name for p in outcome.folder.iterdir()}
    assert not names & {"scores.json", "weights.safetensors"}
    assert go(options, "explode=3", "train.checkpoint_every=2")[0].status == "diverged"
    assert trainings == [0, 0] and record(outcome)["training"]["resumed_at"] is None


def test_samples_that_are_not_finite_are_divergence(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TinyVAE, n: int, *_: Any) -> Any:
        return self.decode({"z": torch.full((n, self.latent), math.nan)}, self.spec.names)

    monkeypatch.setattr(TinyVAE, "joint_generate", broken)
    outcome = go(options, "plan.metrics=coherence", "plan.joint=20", "plan.cross=20")[0]
    assert outcome.status == "diverged" and not (outcome.folder / "scores.json").exists()


def test_init_from_replaces_the_first_stage(options: Options, trainings: list[int]) -> None:
    source = go(options)[0]
    again = go(dataclasses.replace(options, init_from=source.folder.name[:6]), "lr=0.02")[0]
    assert again.status == "done" and again.folder != source.folder
    start = record(again)["init_from"]
    assert start["run_id"] == source.folder.name and start["stages"] == ["warm"] and start["hash"]
    assert record(again)["config"]["init_from"] == start["hash"]
    kept = RunFolder(source.folder).load_weights("stage-warm.safetensors")
    ended = RunFolder(again.folder).load_weights()
    assert torch.equal(kept["inner.a.weight"], ended["inner.a.weight"])
    assert not torch.equal(kept["decoders.a.weight"], ended["decoders.a.weight"])
    steps = {line["step"] for line in RunFolder(again.folder).read_log()}
    assert min(steps) > 10
    with pytest.raises(UsageError, match="no run 'nowhere'"):
        go(dataclasses.replace(options, init_from="nowhere"))
    wide = go(dataclasses.replace(options, init_from=str(source.folder)), "latent=6")[0]
    assert wide.status == "failed" and "same networks" in wide.reason


def test_a_run_loads_back(options: Options) -> None:
    outcome = go(options, "beta=2")[0]
    method, data, config = load_run(outcome.folder, options)
    assert not method.training and config.hyper["beta"] == 2.0 and data.name == "tiny"
    stored = RunFolder(outcome.folder).load_weights()
    assert all(torch.equal(stored[k], v) for k, v in method.state_dict().items())
    assert find_run(options.results, outcome.folder.name[:5]) == outcome.folder


def test_damaged_files_are_one_sentence(options: Options) -> None:
    outcome = go(options)[0]
    weights = outcome.folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_run(outcome.folder, options)
    again = go(options, "plan.metrics=cost")[0]
    assert again.status == "failed" and "damaged" in again.reason and "--force" in again.reason
    weights.unlink()
    with pytest.raises(UserError, match="weights .* are missing"):
        load_run(outcome.folder, options)
    (outcome.folder / "run.json").write_text("{")
    again = go(options)[0]
    assert again.status == "failed" and "unreadable" in again.reason
    assert go(dataclasses.replace(options, force=True))[0].status == "done"


def test_damaged_scores_are_computed_again(options: Options, trainings: list[int]) -> None:
    outcome = go(options)[0]
    (outcome.folder / "scores.json").write_text('{"scores": [')
    assert go(options)[0].status == "done" and trainings == [0]
    assert find_runs(options.results)[0].scores


def test_a_corrupt_checkpoint_is_one_sentence(options: Options) -> None:
    outcome = go(options, "crash=9", "train.checkpoint_every=3")[0]
    checkpoint = outcome.folder / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    again = go(options, "crash=9", "train.checkpoint_every=3")[0]
    assert again.status == "failed" and "the checkpoint" in again.reason and "--force" in again.reason
    assert "\n" not in again.reason


def test_results_that_cannot_be_written(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*--results"):
        go(dataclasses.replace(options, results=tmp_path / "file"))


def test_hyper_parameters_that_a_method_refuses(options: Options) -> None:
    outcome = go(options, "latent=0")[0]
    assert outcome.status == "failed"
    assert "refuses these hyper-parameters (latent must be positive)" in outcome.reason


def test_a_compute_budget_sets_the_steps(options: Options) -> None:
    few, many = (go(options, f"train.flops={f}", "train.steps=999")[0] for f in (2e7, 4e7))
    steps = [record(o)["training"]["steps"] for o in (few, many)]
    assert 0 < steps[0] < 999 and steps[1] == pytest.approx(2 * steps[0], abs=1)


def test_a_compute_budget_takes_the_weights_of_as_many_steps(options: Options, trainings: list[int]) -> None:
    counted = record(go(options, "train.flops=2e7")[0])["training"]["steps"]
    plain, _ = (go(options, f"train.steps={counted + more}")[0] for more in (0, 1))
    assert trainings == [0, 0, 0]
    same_budget = go(options, "train.flops=2e7", "plan.probe_train=30")[0]
    assert trainings == [0, 0, 0]
    RunFolder(same_budget.folder).drop("weights.safetensors")
    nearly = go(options, "train.flops=2.00001e7")[0]
    assert trainings == [0, 0, 0] and record(nearly)["training"] == record(plain)["training"]


def test_nothing_is_trained_before_everything_resolves(options: Options, trainings: list[int]) -> None:
    with pytest.raises(UsageError, match="no method 'ourz'"):
        go(options, methods=(METHOD, "ourz"))
    with pytest.raises(UsageError, match="mopoe has no hyper-parameter 'crash'"):
        go(options, "crash=-1", methods=(METHOD, "mopoe"))
    assert trainings == []


def test_a_record_keeps_apart_who_trained_and_who_scored(options: Options) -> None:
    (outcome,) = go(options)
    first = record(outcome)
    assert first["training"]["code"] == first["code"]
    for part in ("code", "git", "versions", "hardware"):
        first["training"][part] = "of another day"
    (outcome.folder / "run.json").write_text(json.dumps(first))
    (again,) = go(dataclasses.replace(options, rescore=True))
    assert again.status == "done" and not again.reused
    after = record(again)
    assert after["training"]["code"] == "of another day" and after["code"] != "of another day"
    assert after["training"]["hardware"] == "of another day"


def test_rescoring_does_not_train(options: Options, trainings: list[int]) -> None:
    (first,) = go(options)
    before = (first.folder / "scores.json").read_text()
    (first.folder / "scores.json").write_text(before.replace('"value": 0', '"value": 1'))
    (again,) = go(dataclasses.replace(options, rescore=True))
    assert trainings == [0] and not again.reused
    assert json.loads((again.folder / "scores.json").read_text()) == json.loads(before)


def test_a_run_is_scored_again_by_its_record(options: Options, trainings: list[int]) -> None:
    """Also where a hyper-parameter came later, so that the same command would train another run."""
    (first,) = go(options)
    path, scores = first.folder / "run.json", first.folder / "scores.json"
    known, before = record(first), json.loads(scores.read_text())
    older = {k: v for k, v in known["config"]["hyper"].items() if k != "lr"}
    known["config"]["hyper"] = older
    path.write_text(json.dumps(known))
    scores.write_text(json.dumps(before | {"scores": []}))
    (again,) = rescore([first.folder.name[:5]], options, Reporter(quiet=True))
    assert again.status == "done" and not again.reused and again.folder == first.folder
    assert trainings == [0]
    after = record(again)
    assert after["run_id"] == first.folder.name and after["config"]["hyper"] == older
    assert after["training"] == known["training"] and after["trained"] == known["trained"]
    assert json.loads(scores.read_text()) == before
    assert [p.name for p in first.folder.parent.iterdir()] == [first.folder.name]


def test_a_rescoring_that_was_cut_off_goes_on_beside_the_published_copy(options: Options) -> None:
    (first,) = go(options)
    publish(first.folder, options.results)
    path = first.folder / "run.json"
    path.write_text(json.dumps(record(first) | {"status": "running"}))
    assert find_run(options.results, first.folder.name).parent.parent.parent.name == "published"
    (again,) = rescore([first.folder.name], options, Reporter(quiet=True))
    assert again.status == "done" and again.folder == first.folder


def test_only_a_trained_run_is_scored_again(options: Options) -> None:
    (first,) = go(options)
    (first.folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="no finished weights to score"):
        rescore([first.folder.name], options, Reporter(quiet=True))
    with pytest.raises(UsageError, match="no run 'zzz'"):
        rescore(["zzz"], options, Reporter(quiet=True))


def test_weights_of_other_code_are_not_taken_over(options: Options, trainings: list[int]) -> None:
    (first,) = go(options)
    go(options, "plan.probe_train=50")
    assert trainings == [0]
    changed = record(first)
    changed["training"]["code"] = "older"
    for folder in first.folder.parent.iterdir():
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"training": changed["training"]}))
    go(options, "plan.probe_train=40")
    assert trainings == [0, 0]


def test_a_sampler_that_does_not_exist_is_said_before_training(
    options: Options, trainings: list[int]
) -> None:
    (outcome,) = go(options, "plan.samplers=nonsense")
    assert outcome.status == "failed" and "no sampler 'nonsense'" in outcome.reason
    assert trainings == []
