"""Acceptance, displacement and mixing of chains, against chains whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.chains import LONG_CHAINS, repeated, score_chains
from bench.drawing import draw_diagnostics
from bench.errors import UsageError
from datasets.spec import DataSpec, Modality, Split
from methods.ours import Ours
from methods.parts.chain_trace import Tracer, log_acceptance
from methods.parts.langevin import State, energy_and_gradient, langevin
from metrics.chain_diagnostics import autocorrelation, mixing, mixing_scores, quantities, step_scores


def gaussian(state: State) -> Tensor:
    """U of N(0, diag(1, 4)) over two blocks."""
    return 0.5 * (state["a"].square().sum(1) + state["b"].square().sum(1) / 4)


def traced(steps: int, step_size: float, noise: float, n: int = 64, max_drift: float | None = None):
    torch.manual_seed(0)
    start = {"a": torch.randn(n, 3), "b": 2 * torch.randn(n, 2)}
    tracer = Tracer(step_size, noise)
    state, energies = langevin(start, gaussian, steps, step_size, noise, max_drift, tracer)
    return start, state, energies, tracer.trace()


def test_the_ratio_is_that_of_metropolis_and_hastings() -> None:
    torch.manual_seed(0)
    s, n = 0.7, 0.4
    temperature = (n / s) ** 2
    x = {"a": torch.randn(5, 3).double(), "b": torch.randn(5, 2).double()}
    y = {k: v + 0.5 * torch.randn_like(v) for k, v in x.items()}

    def parts(at: State) -> tuple[Tensor, State]:
        energy, gradient = energy_and_gradient(gaussian, at)
        return energy, {k: -0.5 * s**2 * g for k, g in gradient.items()}

    def log_q(to: State, at: State, drift: State) -> Tensor:
        each = [torch.distributions.Normal(at[k] + drift[k], n).log_prob(to[k]).sum(1) for k in at]
        return torch.stack(each).sum(0)

    (u_x, d_x), (u_y, d_y) = parts(x), parts(y)
    expected = (u_x - u_y) / temperature + log_q(x, y, d_y) - log_q(y, x, d_x)
    found = log_acceptance(x, y, d_x, d_y, u_y - u_x, s, n)
    torch.testing.assert_close(found, expected.clamp_max(0))
    assert (expected > 0).any() and (expected < 0).any()


def test_small_steps_are_accepted_and_large_ones_are_not() -> None:
    rates = [float(traced(20, s, s)[3].acceptance.mean()) for s in (0.05, 1.0, 3.0)]
    assert rates[0] > 0.99 and rates[0] > rates[1] > rates[2]
    assert rates[2] < 0.5


def test_the_trace_is_what_the_chain_did() -> None:
    start, state, energies, trace = traced(7, 0.3, 0.1, max_drift=0.2)
    assert trace.energies.shape == trace.displacement.shape == (8, 64)
    assert trace.acceptance.shape == (7, 64) and trace.projections.shape == (8, 64, 3)
    torch.testing.assert_close(trace.energies[:-1], energies)
    torch.testing.assert_close(trace.energies[-1], gaussian(state))
    moved = torch.cat([(state[k] - start[k]).square() for k in start], 1).mean(1).sqrt()
    torch.testing.assert_close(trace.displacement[-1], moved)
    assert (trace.displacement[0] == 0).all()


def test_tracing_changes_no_chain_and_no_random_number() -> None:
    torch.manual_seed(0)
    start = {"a": torch.randn(64, 3), "b": 2 * torch.randn(64, 2)}
    plain, _ = langevin(start, gaussian, 7, 0.3, 0.1, 0.2)
    _, state, _, _ = traced(7, 0.3, 0.1, max_drift=0.2)
    assert all(torch.equal(plain[k], state[k]) for k in plain)


def test_without_noise_there_is_no_acceptance() -> None:
    _, _, _, trace = traced(5, 0.3, 0.0)
    assert trace.acceptance is None
    scores = {s.metric: s for s in step_scores("data", trace)}
    assert "no noise" in scores["chain_acceptance"].unavailable
    assert scores["chain_displacement"].value > 0


def autoregressive(rho: float, chains: int, draws: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((chains, draws))
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregression(rho: float) -> None:
    ess, time, rhat = mixing(autoregressive(rho, 8, 20_000))
    assert time == pytest.approx((1 + rho) / (1 - rho), rel=0.1)
    assert ess * time == pytest.approx(160_000) and rhat == pytest.approx(1, abs=0.01)


def test_chains_that_disagree_have_a_large_rhat() -> None:
    values = autoregressive(0.5, 4, 500) + 5 * np.arange(4)[:, None]
    assert mixing(values)[2] > 2


def test_autocorrelation_by_lag() -> None:
    found = autocorrelation(autoregressive(0.8, 8, 20_000))
    assert found[0] == pytest.approx(1)
    np.testing.assert_allclose(found[:6], 0.8 ** np.arange(6), atol=0.03)


def test_what_stands_still_is_not_called_mixed() -> None:
    assert all(math.isnan(v) for v in mixing(np.ones((4, 100))))
    assert all(math.isnan(v) for v in mixing(np.random.default_rng(0).standard_normal((4, 3))))


def test_mixing_scores_name_kind_and_quantity() -> None:
    trace = traced(60, 0.5, 0.5, n=4)[3]
    scores = {(s.metric, s.attribute): s for s in mixing_scores("posterior", trace)}
    assert {a for _, a in scores} == {f"posterior {q}" for q in quantities(trace)}
    assert scores["chain_rhat", "posterior energy"].n == 4
    assert scores["chain_rhat", "posterior energy"].steps == 60
    assert {v.shape for v in quantities(trace).values()} == {(4, 31)}


SPEC = DataSpec(tuple(Modality(f"m{i}", "image", (3, 12, 12)) for i in range(2)))


def small_ours(**settings) -> Ours:
    torch.manual_seed(0)
    form = dict(network="cnn", width=4, latent=5, energy_width=8, stem_width=4, data_steps=3, latent_steps=4)
    return Ours(SPEC, **{**form, **settings}).eval()


def small_split() -> Split:
    generator = torch.Generator().manual_seed(0)
    stored = {
        m.name: torch.randint(0, 256, (20, *m.shape), dtype=torch.uint8, generator=generator) for m in SPEC
    }
    return Split(SPEC, stored, {"digit": torch.arange(20) % 10})


def test_every_chain_of_a_method_is_scored() -> None:
    scores = score_chains(small_ours(), small_split(), torch.device("cpu"))
    found = {(s.metric, s.attribute): s for s in scores}
    for kind in ("data", "posterior"):
        assert 0 <= found["chain_acceptance", kind].value <= 1
        assert found["chain_displacement", kind].value > 0
        assert found["chain_rhat", f"{kind} energy"].n == LONG_CHAINS
    assert found["chain_displacement", "posterior"].steps == 4
    assert ("chain_energy", "data change") in found and ("chain_log_likelihood", "posterior change") in found


def test_long_posterior_chains_share_one_target() -> None:
    x = repeated(small_split(), 4, torch.device("cpu"))
    assert all(torch.equal(t, t[:1].expand_as(t)) and len(t) == 4 for t in x.values())


def test_a_chain_without_noise_says_so_in_the_scores() -> None:
    scores = score_chains(small_ours(data_noise=0.0), small_split(), torch.device("cpu"))
    (found,) = [s for s in scores if s.metric == "chain_acceptance" and s.attribute == "data"]
    assert found.value is None and "no noise" in found.unavailable


def test_the_figure_is_drawn_from_a_method(tmp_path: Path) -> None:
    files = draw_diagnostics(small_ours(), small_split(), tmp_path / "chains", kinds=["posterior"])
    assert [f.suffix for f in files] == [".png", ".pdf"] and all(f.stat().st_size > 5000 for f in files)
    with pytest.raises(UsageError, match="runs no 'prior' chain; choose from data, posterior"):
        draw_diagnostics(small_ours(), small_split(), tmp_path / "x", kinds=["prior"])
