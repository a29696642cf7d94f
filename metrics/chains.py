"""Do the Markov chains go where they should? Energy and log-likelihood at both ends, on held-out data.

A data chain must lower the energy of the generator's draws, a posterior chain must raise the
log-likelihood of the observations it is given (P1 Figure 4).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from metrics.protocol import Score

BETTER: dict[str, Literal["higher", "lower"]] = {"energy": "lower", "log_likelihood": "higher"}


def chain_scores(kind: str, quantity: str, values: Tensor) -> list[Score]:
    """Scores `chain_<quantity>` with attribute `<kind> start`, `<kind> end` and `<kind> change`.

    values `[steps + 1, B]`: the quantity at every step of B chains. Means over chains with a normal 95 %
    interval; `change` pairs the ends of each chain. Raises ValueError for an unknown quantity.
    """
    if quantity not in BETTER:
        raise ValueError(f"a chain of '{quantity}' is unknown; there are {', '.join(BETTER)}")
    values = values.double()
    ends = {"start": values[0], "end": values[-1], "change": values[-1] - values[0]}
    scores = []
    for name, each in ends.items():
        mean, n = float(each.mean()), each.numel()
        half = 1.96 * float(each.std(unbiased=True)) / n**0.5 if n > 1 else None
        scores.append(
            Score(
                f"chain_{quantity}",
                mean,
                n,
                BETTER[quantity] if name == "change" else "",
                task="chain",
                steps=len(values) - 1,
                attribute=f"{kind} {name}",
                low=None if half is None else mean - half,
                high=None if half is None else mean + half,
            )
        )
    return scores
