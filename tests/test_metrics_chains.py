"""Chain diagnostics: ends, paired change, direction."""

from __future__ import annotations

import pytest
import torch

from metrics.chains import chain_scores


def test_ends_and_paired_change():
    start = torch.tensor([1.0, 2.0, 9.0])
    values = torch.stack([start, start - 0.2, start - 0.5])
    scores = {s.attribute: s for s in chain_scores("data", "energy", values)}
    assert scores["data start"].value == pytest.approx(4.0)
    assert scores["data change"].value == pytest.approx(-0.5)
    # Every chain fell by the same amount, so the paired interval is a point though the starts differ.
    assert scores["data change"].low == pytest.approx(scores["data change"].high)
    assert scores["data change"].better == "lower" and scores["data change"].n == 3
    assert scores["data end"].steps == 2
    assert scores["data step 1"].value == pytest.approx(3.8) and scores["data step 1"].steps == 1
    assert set(scores) == {"data start", "data step 1", "data end", "data change"}


@pytest.mark.parametrize(
    ("steps", "between"),
    [(1, []), (10, [*range(1, 10)]), (30, [*range(3, 30, 3)]), (25, [2, 5, 8, 10, 12, 15, 18, 20, 22])],
)
def test_steps_between_the_ends(steps: int, between: list[int]):
    values = torch.arange(steps + 1.0)[:, None].expand(-1, 2)
    found = [s for s in chain_scores("data", "energy", values) if "step" in s.attribute]
    assert [s.steps for s in found] == between and [s.value for s in found] == between


def test_log_likelihood_should_rise():
    change = chain_scores("posterior", "log_likelihood", torch.zeros(2, 4))[-1]
    assert change.better == "higher" and change.metric == "chain_log_likelihood"


def test_unknown_quantity_is_refused():
    with pytest.raises(ValueError, match="energy"):
        chain_scores("data", "temperature", torch.zeros(2, 4))
