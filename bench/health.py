"""Signs in the log of a training run that it goes wrong without diverging, and which knob to turn.

A run that diverges is stopped (`methods.base.Diverged`). These are for the others: they end, with scores that
say little about the method. What is looked at are terms that `ours` and its relatives log:
`share.<modality>`, how much each expert has of the mixture at the draws of the posterior,
`prior_components.<latent>`, exp of the entropy of the shares of a fitted prior, and
`prior_log_scale.<latent>`, its mean log scale. The log alone decides, so that a table can say it of a
committed record without importing the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

STARVED = 0.1
"""Of 1 / M, below which an expert takes no part any more (METHODS 2.14.7)."""
MERGED = 0.25
"""Of the components at the start of a stage, below which the prior has lost its clusters."""
SPREAD = 1.0
"""Rise of the mean log scale of the prior's components over a stage, above which latents spread: experts
probably learn draws as wide as their own, and nothing in the loss holds their variance (docs/tuning.md)."""
PATIENCE = 3
"""Lines of the log in a row that must show a sign: a stage may begin with one that passes."""

Terms = Mapping[str, float]


def signs(first: Terms, now: Terms) -> dict[str, str]:
    """Kind -> what is wrong, from the logged terms of a stage: its first line and a later one."""
    found = {}
    shares = {n.removeprefix("share."): value for n, value in now.items() if n.startswith("share.")}
    starved = [f"{name} {value:.1%}" for name, value in shares.items() if value < STARVED / len(shares)]
    if starved:
        found["share"] = (
            f"experts hardly learn from the latent chain (of the mixture they have: {', '.join(starved)}); "
            "shorten the chain (latent_steps, latent_step_size) or bound its drift (latent_max_drift, sigma)"
        )
    for name, value in now.items():
        if name.startswith("prior_components.") and value < MERGED * first.get(name, 0.0):
            found[name] = (
                f"the fitted prior has {value:.3g} effective components left of {first[name]:.3g}; let the "
                "generator step less often (updates) or lower lr_generator"
            )
        if name.startswith("prior_log_scale.") and value > first.get(name, value) + SPREAD:
            found[name] = (
                f"components of the fitted prior are {math.exp(value - first[name]):.3g} times as wide as at "
                "first, probably since experts learn their own noise; allow them less (log_variance_high) or "
                "lengthen the latent chain (latent_steps, latent_step_size)"
            )
    return found


class Health:
    """Looks at the lines of a log one after another; a sign counts after `PATIENCE` lines in a row."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.first: dict[str, Terms] = {}
        self.told: set[tuple[str, str]] = set()
        self.rows: dict[str, int] = {}
        self.stage, self.now = "", {}
        for entry in entries:
            if entry.get("kind") == "train":
                self.look(entry.get("stage", ""), entry.get("step", 0), entry["terms"])

    def look(self, stage: str, step: int, terms: Mapping[str, float | None]) -> list[str]:
        """The signs that count now and were not told in this stage, as sentences."""
        finite = {name: value for name, value in terms.items() if value is not None}
        if stage != self.stage:
            self.stage, self.rows = stage, {}
        self.now = signs(self.first.setdefault(stage, finite), finite)
        self.rows = {kind: self.rows.get(kind, 0) + 1 for kind in self.now}
        fresh = [kind for kind in self.lasting() if (stage, kind) not in self.told]
        self.told |= {(stage, kind) for kind in fresh}
        return [f"at step {step} {self.now[kind]}" for kind in fresh]

    def lasting(self) -> dict[str, str]:
        """The signs that count at the last line."""
        return {kind: text for kind, text in self.now.items() if self.rows[kind] >= PATIENCE}
