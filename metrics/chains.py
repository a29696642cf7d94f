"""Do the Markov chains go where they should? Energy and log-likelihood along them, on held-out data.

A data chain must lower the energy of the generator's draws, a posterior chain must raise the
log-likelihood of the observations it is given (P1 Figure 4).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from metrics.protocol import Score

Better = Literal["higher", "lower", ""]
BETTER: dict[str, Better] = {"energy": "lower", "log_likelihood": "higher"}
BETWEEN = 9


def chain_scores(kind: str, quantity: str, values: Tensor) -> list[Score]:
    """Scores `chain_<quantity>` with attributes `<kind> start`, `end`, `change`, and `step k` in between.

    values `[steps + 1, B]`: the quantity at every step of B chains. Means over chains with a normal 95 %
    interval; `change` pairs the ends of each chain, the steps between them are at most `BETWEEN`, evenly
    spaced. Raises ValueError for an unknown quantity.
    """
    if quantity not in BETTER:
        raise ValueError(f"a chain of '{quantity}' is unknown; there are {', '.join(BETTER)}")
    values = values.double()
    ends = {"start": values[0], "end": values[-1], "change": values[-1] - values[0]}
    scores = []
    for name, each in ends.items():
        better = BETTER[quantity] if name == "change" else ""
        scores.append(over_chains(f"chain_{quantity}", f"{kind} {name}", each, len(values) - 1, better))
    for k in _between(len(values) - 1):
        scores.append(over_chains(f"chain_{quantity}", f"{kind} step {k}", values[k], k))
    return scores


def _between(steps: int) -> list[int]:
    """Steps between both ends, all of them or `BETWEEN` evenly spaced ones."""
    if steps <= BETWEEN + 1:
        return list(range(1, steps))
    return sorted({round(steps * k / (BETWEEN + 1)) for k in range(1, BETWEEN + 1)})


def over_chains(metric: str, attribute: str, each: Tensor, steps: int, better: Better = "") -> Score:
    """Mean of one value per chain `[B]`, with a normal 95 % interval."""
    each = each.double()
    mean, n = float(each.mean()), each.numel()
    half = 1.96 * float(each.std(unbiased=True)) / n**0.5 if n > 1 else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Score(metric, mean, n, better, task="chain", steps=steps, attribute=attribute, low=low, high=high)
