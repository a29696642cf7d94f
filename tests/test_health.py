"""Runs that go wrong without diverging are told from their logs, while they train and beside their scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import ours_scores, write_run

from bench.footer import health_notes
from bench.health import Health, signs
from bench.paper_tables import paper_table
from bench.store import find_runs, read_log
from bench.table import comparison_tables

WELL = {
    **{f"share.m{i}": 0.2 for i in range(5)},
    "prior_components.z": 16.0,
    "prior_log_scale.z": -0.5,
    "loss": 900.0,
}


def entry(step: int, stage: str = "revision", **terms: float) -> dict[str, object]:
    return {"kind": "train", "stage": stage, "step": step, "epoch": 0, "terms": {**WELL, **terms}}


@pytest.mark.parametrize(
    ("terms", "kind", "words"),
    [
        ({"share.m3": 0.019}, "share", ("m3 1.9%", "latent_steps")),
        ({"prior_components.z": 3.9}, "prior_components.z", ("3.9", "16", "updates")),
        ({"prior_log_scale.z": 0.6}, "prior_log_scale.z", ("are 3 times as wide", "log_variance_high")),
    ],
)
def test_each_sign_names_its_knob(terms: dict[str, float], kind: str, words: tuple[str, ...]) -> None:
    found = signs(WELL, {**WELL, **terms})
    assert list(found) == [kind] and all(word in found[kind] for word in words)


def test_the_limits_are_those_of_the_text() -> None:
    assert not signs(WELL, {**WELL, "share.m3": 0.02, "prior_components.z": 4.0, "prior_log_scale.z": 0.5})
    assert not signs({}, WELL), "a term that the first line lacks cannot have changed"


@given(st.lists(st.floats(0.021, 1.0), min_size=5, max_size=5), st.floats(4.0, 20.0), st.floats(-3.0, 0.49))
def test_healthy_terms_have_no_signs(shares: list[float], components: float, scale: float) -> None:
    now = {f"share.m{i}": value for i, value in enumerate(shares)}
    assert not signs(WELL, {**WELL, **now, "prior_components.z": components, "prior_log_scale.z": scale})


def test_a_sign_is_told_when_it_lasts_and_once_a_stage() -> None:
    bad = {"share.m0": 0.01}
    health = Health([entry(10), entry(20, **bad)])
    assert not health.lasting()
    assert health.look("revision", 30, {**WELL, **bad}) == []
    (told,) = health.look("revision", 40, {**WELL, **bad})
    assert told.startswith("at step 40 ") and health.look("revision", 50, {**WELL, **bad}) == []
    assert list(health.lasting()) == ["share"]
    assert health.look("revision", 60, WELL) == [] and not health.lasting(), "it has passed"
    for step in (70, 80, 90):
        again = health.look("another", step, {**WELL, **bad})
    assert len(again) == 1, "a new stage"


def test_after_a_resume_a_sign_is_not_told_again() -> None:
    bad = {"share.m0": 0.01}
    health = Health(entry(step, **bad) for step in (10, 20, 30, 40))
    assert health.look("revision", 50, {**WELL, **bad}) == [] and list(health.lasting()) == ["share"]


def test_lines_of_validation_and_numbers_that_were_not_finite_are_left_out() -> None:
    assert Health([{**entry(10), "kind": "val"}]).first == {}
    log = [entry(10), {**entry(20), "terms": {**WELL, "share.m0": None, "prior_components.z": None}}]
    assert Health(log).lasting() == {}


def test_tables_say_which_training_ended_badly(tmp_path: Path) -> None:
    log = [entry(10), *(entry(step, **{"prior_components.z": 2.0}) for step in (20, 30, 40))]
    write_run(tmp_path, "ours", ours_scores(), preset="quick", log=log)
    write_run(tmp_path, "ours", ours_scores(), preset="quick", overrides={"updates": "1:2:1"}, log=log)
    (table,) = comparison_tables(find_runs(tmp_path), methods=("ours",))
    said = [note for note in table.notes if note.startswith("Training of")]
    assert len(said) == 1 and "ours seed 0" in said[0] and "2 effective components" in said[0]
    ablations = paper_table("ablations", find_runs(tmp_path))
    said = [note for note in ablations.notes if note.startswith("Training of")]
    assert len(said) == 2 and sum("[updates=1:2:1]" in note for note in said) == 1


def test_experts_with_their_own_chains_share_nothing(tmp_path: Path) -> None:
    """With `own_ends` a small share of the mixture is no sign; a prior that loses its clusters still is."""
    log = [entry(10), *(entry(step, **{"share.m0": 0.01}) for step in (20, 30, 40))]
    for changed in ({}, {"own_ends": True}):
        write_run(tmp_path, "ours", ours_scores(), overrides=changed, log=log)
    (said,) = health_notes(find_runs(tmp_path))
    assert "own_ends" not in said and "m0 1.0%" in said
    log = [
        entry(10),
        *(entry(step, **{"prior_components.z": 2.0, "share.m0": 0.01}) for step in (20, 30, 40)),
    ]
    write_run(tmp_path / "prior", "ours", ours_scores(), overrides={"own_ends": True}, log=log)
    (said,) = health_notes(find_runs(tmp_path / "prior"))
    assert "effective components" in said and "m0" not in said


def test_a_log_without_such_terms_is_fine(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mmvae", log=[{"kind": "train", "terms": {"loss": 1.0}}])
    assert Health(read_log(folder)).lasting() == {}
