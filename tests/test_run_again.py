"""Runs that are called again: lost weights, other code, locks, twins, what cannot be had."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import counted_trainings, go, options_in, record

import bench.job
import bench.scoring
from bench.job import Options
from bench.progress import Reporter
from bench.run import rescore, run_many
from bench.store import RunFolder
from datasets.spec import UserError


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return options_in(tmp_path)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_trainings(monkeypatch)


def test_new_weights_leave_no_score_of_the_old_ones(
    options: Options, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights are lost and a metric is new, all metrics are of the weights that are trained then."""
    (first,) = go(options)
    RunFolder(first.folder).drop("weights.safetensors")
    (first.folder / "refinement.json").write_text("{}")
    monkeypatch.setattr(bench.job, "code_hash", lambda kind: "newer")
    scored: list[tuple[str, ...]] = []
    original = bench.scoring.evaluate

    def evaluate(method: Any, data: Any, plan: Any, **keys: Any) -> Any:
        scored.append(plan.metrics)
        return original(method, data, plan, **keys)

    monkeypatch.setattr(bench.scoring, "evaluate", evaluate)
    (again,) = go(options, "plan.metrics=latent,cost")
    assert again.folder == first.folder and trainings == [0, 0] and scored == [("latent", "cost")]
    assert record(again)["training"]["code"] == "newer"
    assert not (again.folder / "refinement.json").exists()


def test_a_run_that_another_process_holds_is_left_alone(options: Options) -> None:
    (first,) = go(options)
    before = (first.folder / "run.json").read_bytes()
    with RunFolder(first.folder).locked():
        (again,) = rescore([first.folder.name], options, Reporter(quiet=True))
        assert again.status == "failed" and "another process" in again.reason
        (same,) = go(options)
        assert same.status == "failed" and "another process" in same.reason
    assert (first.folder / "run.json").read_bytes() == before
    assert go(options)[0].reused


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_kernels_are_a_setting_like_others(
    wanted: bool, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = bench.job.train

    def train(*args: Any, **keys: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*args, **keys)

    monkeypatch.setattr(bench.job, "train", train)
    try:
        (outcome,) = go(options, f"train.deterministic={str(wanted).lower()}")
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [wanted] and record(outcome)["config"]["train"]["deterministic"] is wanted


def test_weights_that_cannot_be_had_do_not_score_the_rest_again(options: Options, tmp_path: Path) -> None:
    settings = ("plan.metrics=coherence,ex_post,fid", "plan.joint=20", "plan.cross=20", "plan.fid_n=20")
    lost = dataclasses.replace(options, inception=tmp_path / "none.pth")
    (first,) = go(lost, *settings)
    assert first.status == "done"
    before = (first.folder / "scores.json").stat().st_mtime_ns
    (again,) = go(lost, *settings)
    assert again.reused and (first.folder / "scores.json").stat().st_mtime_ns == before
    assert not go(lost, *settings, "plan.metrics=coherence,ex_post,fid,latent")[0].reused


def test_a_twin_starts_others_like_the_run_it_has_its_weights_from(options: Options) -> None:
    (first,), (twin,) = go(options), go(options, "plan.probe_train=30")
    assert record(twin)["training"] == record(first)["training"]
    starts = [
        record(go(dataclasses.replace(options, init_from=str(source.folder)), "lr=0.02")[0])["init_from"]
        for source in (first, twin)
    ]
    assert starts[0]["hash"] == starts[1]["hash"]
    RunFolder(twin.folder).drop("stage-warm.safetensors")
    with pytest.raises(UserError, match="no weights of the end of its stage 'warm'"):
        go(dataclasses.replace(options, init_from=str(twin.folder)), "lr=0.03")


def test_a_sampler_that_these_settings_lack_is_said_before_training(
    options: Options, trainings: list[int]
) -> None:
    """`ours` without revision has no energy, though the class names the sampler."""
    keys = {"options": options, "reporter": Reporter(quiet=True)}
    settings = ["train.steps=2", "warm_start=1", "plan.samplers=ebm", "plan.metrics=coherence"]
    (outcome,) = run_many(("ours",), "polydigits", "quick", overrides=settings, **keys)
    assert outcome.status == "failed" and "no sampler 'ebm'" in outcome.reason
    assert trainings == []
