"""The conformance suite passes a healthy method, and each of its checks catches a planted fault."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from check_faults_sampling import FAULTS
from check_toys import Healthy, HealthyChain

from bench.check import CheckResult, check_method, report, run_checks
from bench.checks import CHECKS
from datasets.spec import DataSpec, UserError
from methods.base import Method

CRASHES = {"NeedsEveryModality"}
"""Faults that show as an exception; all others must be caught by what the check looks at."""

CASES = [(name, kind) for name, kinds in FAULTS.items() for kind in kinds]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny layers run fastest on one thread; and no test depends on the generators' state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", [Healthy, HealthyChain])
def test_healthy_methods_pass_every_check(kind: type[Method]) -> None:
    results = run_checks(kind)
    assert {r.name for r in results} == set(CHECKS)
    assert [r for r in results if not r.ok] == []
    skipped = {r.name for r in results if r.status == "skipped"}
    assert skipped == (set() if kind is HealthyChain else {"chains_are_recorded"})


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{n}-{k.__name__}" for n, k in CASES])
def test_a_planted_fault_is_caught(name: str, kind: type[Method]) -> None:
    results = run_checks(kind, only=[name])
    failed = [r for r in results if r.status == "failed"]
    assert failed, report(results)
    if kind.__name__ not in CRASHES:
        assert not [r for r in failed if re.match(r"\w+Error: ", r.detail)], report(failed)


def test_every_check_has_a_planted_fault() -> None:
    assert set(CHECKS) == set(FAULTS)


def test_every_check_says_what_it_is_for() -> None:
    assert all(len(c.purpose) > 20 for c in CHECKS.values())


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("hyper_parameters_act", "DeadBeta", "beta"),
        ("every_parameter_is_trained", "UnusedLayer", "left over"),
        ("gradients_match_the_table", "CriticIsTrained", "critic: energy"),
        ("tensors_are_registered", "ParametersInAList", "not parameters"),
        ("same_seed_same_samples", "NumpyPicksTheExpert", "cross_generate"),
        ("targets_are_not_copied", "CopiesIntoTheOtherTarget", "returns its input"),
        ("samples_vary", "AlwaysTheSameTuple", "repeats"),
    ],
)
def test_the_detail_names_the_fault(name: str, kind: str, words: str) -> None:
    (found,) = [k for k in FAULTS[name] if k.__name__ == kind]
    failed = [r for r in run_checks(found, only=[name]) if r.status == "failed"]
    assert failed and all(words in r.detail for r in failed)


class ImagesOnly(Healthy):
    """Declares text and interpolation unsupported."""

    @classmethod
    def unsupported(cls, spec: DataSpec, task: str) -> str | None:
        if spec.texts:
            return "no text"
        return "no way between two latents" if task == "interpolate" else super().unsupported(spec, task)


def test_what_is_unsupported_is_skipped_with_the_reason() -> None:
    results = run_checks(ImagesOnly)
    assert all(r.ok for r in results)
    mixed = [r for r in results if r.spec == "mixed"]
    assert mixed and all((r.status, r.detail) == ("skipped", "no text") for r in mixed)
    (prior,) = [r for r in results if r.name == "prior_draws_decode" and r.spec == "images"]
    assert (prior.status, prior.detail) == ("skipped", "no way between two latents")


class Excused(Healthy):
    """Has a hyper-parameter that saves memory and changes no number, and says so."""

    excused = {
        "hyper_parameters_act[chunk]": "splits the decoding only",
        "samples_vary": "is a constant on purpose",
    }

    def __init__(self, spec: DataSpec, *, beta: float = 0.1, chunk: int = 4) -> None:
        super().__init__(spec, beta=beta)


def test_excuses_are_honoured_and_shown() -> None:
    results = run_checks(Excused, only=["hyper_parameters_act", "samples_vary"])
    assert {(r.name, r.status) for r in results} == {
        ("hyper_parameters_act", "ok"),
        ("samples_vary", "skipped"),
    }
    text = report(results)
    assert "splits the decoding only" in text and "is a constant on purpose" in text


def test_an_excuse_for_no_check_is_an_error() -> None:
    class Misspelt(Healthy):
        excused = {"sample_vary": "no such check"}

    with pytest.raises(UserError, match="sample_vary"):
        run_checks(Misspelt)


def test_an_exception_is_a_failed_check_that_says_where() -> None:
    class Crashes(Healthy):
        def encode(self, given):
            raise KeyError("m7")

    results = run_checks(Crashes, only=["encode_is_deterministic"])
    assert all(r.status == "failed" and "KeyError: 'm7' (test_check_suite.py:" in r.detail for r in results)


def test_checks_leave_the_generators_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    run_checks(Healthy, only=["same_seed_same_samples", "samples_vary"])
    assert torch.equal(torch.rand(3), expected)
    assert random.getstate() == state
    assert (np.random.get_state()[1] == numpy_state).all()


def test_names_and_paths_lead_to_a_method() -> None:
    results = check_method("check_toys:Healthy", only=["groups_are_named"])
    assert [r.status for r in results] == ["ok", "ok"]
    with pytest.raises(UserError, match="no_such_check"):
        check_method(Healthy, only=["no_such_check"])


def test_report_counts_and_shows_faults() -> None:
    results = [
        CheckResult("loss_is_finite", "images", "ok"),
        CheckResult("loss_is_finite", "mixed", "failed", "the loss is nan"),
        CheckResult("hyper_parameters_act", "all", "skipped", "because"),
    ]
    text = report(results)
    assert "FAILED loss_is_finite (mixed): the loss is nan" in text
    assert "skipped hyper_parameters_act (all): because" in text
    assert text.endswith("1 ok, 1 failed, 1 skipped")
