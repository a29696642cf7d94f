"""Runs that go wrong without diverging are told from their logs, while they train and beside their scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import ours_scores, write_run

from bench.health import Health, signs
from bench.paper_tables import paper_table
from bench.store import find_runs
from bench.table import comparison_tables

WELL = {
    **{f"share.m{i}": 0.2 for i in range(5)},
    "prior_components.z": 16.0,
    "infer_data": 24.0,
    "loss": 900.0,
}


def entry(step: int, stage: str = "revision", **terms: float) -> dict[str, object]:
    return {"kind": "train", "stage": stage, "step": step, "epoch": 0, "terms": {**WELL, **terms}}


@pytest.mark.parametrize(
    ("terms", "kind", "words"),
    [
        ({"share.m3": 0.019}, "share", ("m3 1.9%", "expert_mean")),
        ({"prior_components.z": 3.9}, "prior_components.z", ("3.9", "16", "updates")),
        ({"infer_data": 37.0}, "infer_data", ("24", "37", "lr_inference")),
    ],
)
def test_each_sign_names_its_knob(terms: dict[str, float], kind: str, words: tuple[str, ...]) -> None:
    found = signs(WELL, {**WELL, **terms})
    assert list(found) == [kind] and all(word in found[kind] for word in words)


def test_the_limits_are_those_of_the_text() -> None:
    assert not signs(WELL, {**WELL, "share.m3": 0.02, "prior_components.z": 4.0, "infer_data": 36.0})
    assert not signs({}, WELL), "a term that the first line lacks cannot have changed"
    assert not signs({"infer_data": -5.0}, {"infer_data": 4.9}), "a rise of less than ten nats"
    assert signs({"infer_data": -5.0}, {"infer_data": 5.1})


@given(st.lists(st.floats(0.021, 1.0), min_size=5, max_size=5), st.floats(0.0, 24.0))
def test_healthy_terms_have_no_signs(shares: list[float], infer: float) -> None:
    now = {f"share.m{i}": value for i, value in enumerate(shares)}
    assert not signs(WELL, {**WELL, **now, "infer_data": infer})


def test_a_sign_is_told_once_a_stage_and_after_a_resume_not_again() -> None:
    log = [entry(10), entry(20, **{"share.m0": 0.01}), entry(30, **{"share.m0": 0.01, "infer_data": 40.0})]
    health = Health(log)
    assert [s.split(" ")[:3] for s in health.sentences] == [["at", "step", "20"], ["at", "step", "30"]]
    assert health.look("revision", 40, {**WELL, "share.m0": 0.01}) == []
    assert len(health.look("another", 50, {**WELL, "share.m0": 0.01})) == 1
    assert Health([{**entry(10), "kind": "val"}]).first == {}


def test_tables_say_which_training_went_wrong(tmp_path: Path) -> None:
    log = [entry(10), entry(20, **{"prior_components.z": 2.0})]
    write_run(tmp_path, "ours", ours_scores(), preset="quick", log=log)
    write_run(tmp_path, "ours", ours_scores(), preset="quick", overrides={"updates": "1:2:1"}, log=log)
    (table,) = comparison_tables(find_runs(tmp_path), methods=("ours",))
    said = [note for note in table.notes if note.startswith("Training of")]
    assert len(said) == 1 and "ours seed 0" in said[0] and "2 effective components" in said[0]
    ablations = paper_table("ablations", find_runs(tmp_path))
    said = [note for note in ablations.notes if note.startswith("Training of")]
    assert len(said) == 2 and sum("[updates=1:2:1]" in note for note in said) == 1


def test_a_log_without_such_terms_is_fine(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mmvae", log=[{"kind": "train", "terms": {"loss": 1.0}}])
    entries = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert Health(entries).sentences == []
