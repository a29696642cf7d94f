"""Our losses against those of the public MultiVae library: same modules, weights, noise and batch.

The library is the optional extra `peers`. Without it, our half of the recorded figures is still checked.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peers_cases import BATCH, CASES, Case, available, gradient_norm, instance, our_loss

ROOT = Path(__file__).parent.parent
RECORD = json.loads((Path(__file__).parent / "peers.json").read_text(encoding="utf-8"))


def every() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", CASES)


def case_of(name: str) -> Case:
    case = CASES[name]
    if not available(case):
        pytest.skip(f"the suite has no method '{case.method}' yet")
    return case


@pytest.fixture
def theirs() -> Any:
    pytest.importorskip("multivae", reason="needs MultiVae: pip install '.[peers]'")
    import peers_multivae

    with peers_multivae.float64():
        yield peers_multivae


@every()
def test_our_recorded_figures_still_hold(name: str) -> None:
    case, recorded = case_of(name), RECORD["cases"][name]
    method = instance(case)
    loss = our_loss(case, method)
    networks = [*method.encoders.parameters(), *method.decoders.parameters()]
    assert loss.item() == pytest.approx(recorded["ours"], rel=1e-8)
    assert gradient_norm(loss, networks) == pytest.approx(recorded["ours_gradient"], rel=1e-7)


@every()
def test_recorded_figures_of_both_sides_agree(name: str) -> None:
    case, recorded = CASES[name], RECORD["cases"][name]
    factor = RECORD["batch"] if case.per_example else 1
    for ours, multivae in (("ours", "multivae"), ("ours_gradient", "multivae_gradient")):
        assert factor * recorded[ours] == pytest.approx(recorded[multivae], rel=max(case.rtol, 1e-9))


def test_the_record_is_of_this_batch_and_of_a_version_that_the_extra_allows() -> None:
    assert RECORD["batch"] == BATCH and RECORD["cases"].keys() == CASES.keys()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = extra["optional-dependencies"]["peers"]
    low, high = re.fullmatch(r"multivae>=([\d.]+),<([\d.]+)", wanted).groups()
    parts = [tuple(map(int, v.split("."))) for v in (low, RECORD["versions"]["multivae"], high)]
    assert parts[0] <= parts[1] < parts[2]


@every()
def test_same_loss_and_gradients_as_multivae(name: str, theirs: Any) -> None:
    case = case_of(name)
    method = instance(case)
    model = theirs.peer_of(case, method)
    ours, peer = our_loss(case, method), theirs.peer_loss(case, model)
    factor = BATCH if case.per_example else 1
    torch.testing.assert_close(factor * ours, peer, rtol=case.rtol, atol=0)

    networks = {n: p for n, p in method.named_parameters() if n.startswith(("encoders", "decoders"))}
    priors = theirs.shared_priors(method, model)
    own = torch.autograd.grad(ours, [*networks.values(), *(p for p, _ in priors)], retain_graph=True)
    other = torch.autograd.grad(peer, [*networks.values(), *(p for _, pieces in priors for p in pieces)])
    other, pieces = list(other[: len(networks)]), iter(other[len(networks) :])
    other += [torch.cat([next(pieces) for _ in held]).view_as(p) for p, held in priors]
    for label, mine, its in zip(
        [*networks, *(f"prior {i}" for i in range(len(priors)))], own, other, strict=True
    ):
        slack = 10 * case.rtol * float(its.abs().max())
        assert its.abs().max() > 0, label
        torch.testing.assert_close(
            factor * mine, its, rtol=10 * case.rtol, atol=slack, msg=lambda text, n=label: f"{n}: {text}"
        )


def test_multivae_ignores_beta_in_mmvae_only(theirs: Any) -> None:
    """Why the cases of MMVAE have beta = 1."""
    for name, ignored in (("mmvae_iwae", True), ("mmvaeplus_iwae", False), ("mopoe", False), ("mvae", False)):
        case = CASES[name]
        method = instance(case)
        losses = [
            theirs.peer_loss(case, theirs.peer_of(case, method, beta=beta)).item() for beta in (1.0, 9.0)
        ]
        assert (losses[0] == losses[1]) == ignored, name


def test_our_beta_of_mmvae_is_not_theirs(theirs: Any) -> None:
    case = Case("mmvae", "MMVAE", CASES["mmvae_iwae"].hyper | {"beta": 2.5}, CASES["mmvae_iwae"].config, True)
    method = instance(case)
    ours, peer = our_loss(case, method), theirs.peer_loss(case, theirs.peer_of(case, method))
    assert abs(BATCH * ours.item() - peer.item()) > 1.0


def test_the_slack_of_products_is_the_variance_that_multivae_adds(theirs: Any) -> None:
    """Without its 1e-8 on each variance, MoPoE and MVTCAE agree to rounding too."""
    from unittest.mock import patch

    from multivae.models.base import base_utils
    from multivae.models.mopoe import mopoe_model
    from multivae.models.mvtcae import mvtcae_model

    def plain(mus: torch.Tensor, logvars: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return base_utils.poe(mus, logvars, eps=0.0)

    for name, module in (("mopoe", mopoe_model), ("mvtcae", mvtcae_model)):
        case = CASES[name]
        method = instance(case)
        with patch.object(module, "poe", plain):
            peer = theirs.peer_loss(case, theirs.peer_of(case, method))
        torch.testing.assert_close(our_loss(case, method), peer, rtol=1e-12, atol=0)
