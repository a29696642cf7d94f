"""Runs the Markov chains of a trained method on held-out tuples, for their scores and their figure."""

from __future__ import annotations

import torch

from datasets.spec import Batch, Split
from methods.base import Chain, Method
from metrics.chain_diagnostics import mixing_scores, step_scores
from metrics.chains import chain_scores
from metrics.protocol import Score
from metrics.rows import spread_rows

CHAINS = 200
"""Chains of the length that the method trains and samples with."""
LONG_CHAINS, LONG_STEPS = 8, 400
"""Chains, and steps of each, from which autocorrelation times and R-hat are estimated."""


def held_out(split: Split, n: int, device: torch.device) -> Batch:
    """`n` tuples spread over the split, at most as many as there are."""
    rows = spread_rows(len(split), n).to(next(iter(split.stored.values())).device)
    return {name: t.to(device) for name, t in split.batch(rows).items()}


def repeated(split: Split, n: int, device: torch.device) -> Batch:
    """The first tuple of the split `n` times: chains that are compared must have the same target."""
    return {name: t.to(device).expand(n, *t.shape[1:]) for name, t in split.batch(torch.arange(1)).items()}


def run_chains(method: Method, kind: str, x: Batch, steps: int | None = None) -> Chain:
    """One chain of this kind for every tuple of `x`; only its ends are decoded."""
    with torch.no_grad():
        return method.chain(kind, x, len(next(iter(x.values()))), steps, every=10**6)


def score_chains(method: Method, test: Split, device: torch.device) -> list[Score]:
    """Every kind of chain that the method runs: its ends, its steps, and how it mixes when it is long."""
    if method.unsupported(method.spec, "chain") is not None:
        return []
    many, one = held_out(test, CHAINS, device), repeated(test, LONG_CHAINS, device)
    scores: list[Score] = []
    for kind in method.chains:
        chain = run_chains(method, kind, many)
        scores += chain_scores(chain.kind, chain.quantity, chain.values)
        if chain.trace is not None:
            scores += step_scores(kind, chain.trace)
            long = run_chains(method, kind, one, LONG_STEPS).trace
            scores += mixing_scores(kind, long) if long is not None else []
    return scores
