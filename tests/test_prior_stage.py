"""The last stage of `ours`: energy alone learns, and the prior comes to fit a posterior that stands still."""

from __future__ import annotations

import pytest
import torch
from cooperative_support import SMALL
from test_ours import batch, make
from text_support import SPEC as CAPTIONED
from text_support import batch as captioned

from methods.base import Progress
from methods.indep_generators import IndepGenerators
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts import fitted_mixture

FITTED = {"fit_prior": True, "prior_components": 3}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_mixture, "RECENT", 20)


def test_it_takes_its_share_from_revision():
    method = make(**FITTED, warm_start=0.25, prior_stage=0.125)
    assert [(s.name, s.share) for s in method.stages] == [
        ("warm", 0.25),
        ("revision", 0.625),
        ("prior", 0.125),
    ]
    assert method.stages[-1].groups == ("energy",)
    assert [s.name for s in make(**FITTED, prior_stage=0.1).stages] == ["revision", "prior"]


@pytest.mark.parametrize("cls", [Ours, OursW, IndepGenerators])
@pytest.mark.parametrize("own", [False, True])
def test_only_the_energy_learns_and_its_loss_is_that_of_revision(cls, own):
    method, other = (make(cls, **FITTED, prior_stage=0.1, own_ends=own) for _ in range(2))
    torch.manual_seed(3)
    usual = other(batch(), Progress("revision", 1, 10))
    torch.manual_seed(3)
    loss = method(batch(), Progress("prior", 1, 10))
    assert list(loss.parts) == ["energy"]
    torch.testing.assert_close(loss.parts["energy"], usual.parts["energy"])
    assert set(loss.terms) == set(usual.terms) - {
        "generator", "inference", "on_data", "on_revised", "infer_data", "infer_revised",
        "log_posterior_start", "log_posterior_end",
    }  # fmt: skip
    loss.total.backward()
    learned = [name for name, p in method.named_parameters() if p.grad is not None]
    assert learned and all(name.startswith("energy.") for name in learned)


def test_the_prior_ends_with_the_latest_draws():
    """EM step by step in between, and components found anew after the last step."""
    torch.manual_seed(0)
    method = Ours(make().spec, **{**SMALL, **FITTED, "prior_stage": 0.5})
    prior, found = method.priors.of("z"), []
    find = prior._find
    prior._find = lambda: (found.append(prior.recent.clone()), find())
    for stage in ("revision", "prior"):
        for step in range(6):
            method(batch(), Progress(stage, step, 6))
    assert len(found) == 2, "once there were draws enough, and at the end"
    assert torch.equal(found[-1], prior.recent)
    torch.testing.assert_close(prior.weight.sum(), torch.tensor(20.0, dtype=torch.float64))
    torch.testing.assert_close(prior.mean, prior.recent.mean(0), atol=1e-4, rtol=1e-4)


def test_words_stay_those_of_the_warm_start():
    torch.manual_seed(0)
    method = Ours(CAPTIONED, **{**SMALL, **FITTED, "warm_start": 0.2, "prior_stage": 0.2})
    method(captioned(), Progress("revision", 0, 4))
    before = {k: v.clone() for k, v in method.state_dict().items() if k.startswith("texts.")}
    assert before
    with torch.no_grad():
        for words in method.words().values():
            words.add_(1.0)
    method(captioned(), Progress("prior", 0, 4))
    after = method.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prior_stage": 0.1}, "fit_prior"),
        ({**FITTED, "prior_stage": 0.5, "warm_start": 0.5}, "revision"),
        ({**FITTED, "prior_stage": 1.0}, "revision"),
        ({**FITTED, "prior_stage": 1.5}, "share"),
    ],
)
def test_impossible_shares_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)
