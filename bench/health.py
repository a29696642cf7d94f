"""Signs in the log of a training run that it goes wrong without diverging, and which knob to turn.

A run that diverges is stopped (`methods.base.Diverged`). These are for the others: they end, with scores that
say little about the method. What is looked at are terms that methods log: `share.<modality>`, how much each
expert has of the mixture at the draws of the posterior; `prior_components.<latent>`, exp of the entropy of
the shares of a fitted prior; `infer_data`, minus the log-density of the inference model at these draws, which
a chain has revised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

STARVED = 0.1
"""Of 1 / M, below which an expert takes no part any more (METHODS 2.14.7)."""
MERGED = 0.25
"""Of the components at the start of a stage, below which the prior has lost its clusters."""
BEHIND = 0.5
"""Relative rise of `infer_data` within a stage, and at least `NATS`."""
NATS = 10.0

Terms = Mapping[str, float]


def signs(first: Terms, now: Terms) -> dict[str, str]:
    """Kind -> what is wrong, from the logged terms of a stage: its first line and a later one."""
    found = {}
    shares = {n.removeprefix("share."): value for n, value in now.items() if n.startswith("share.")}
    starved = [f"{name} {value:.1%}" for name, value in shares.items() if value < STARVED / len(shares)]
    if starved:
        found["share"] = (
            f"experts hardly learn from the latent chain (of the mixture they have: {', '.join(starved)}); "
            "shorten the chain (latent_steps, latent_step_size) or raise expert_mean"
        )
    for name, value in now.items():
        if name.startswith("prior_components.") and value < MERGED * first.get(name, 0.0):
            found[name] = (
                f"the fitted prior has {value:.3g} effective components left of {first[name]:.3g}; let the "
                "generator step less often (updates) or lower lr_generator"
            )
    if "infer_data" in first and "infer_data" in now:
        before, after = first["infer_data"], now["infer_data"]
        if after > before + max(NATS, BEHIND * abs(before)):
            found["infer_data"] = (
                f"the inference model falls behind the latent chain, -log q(z+|X) rose from {before:.3g} to "
                f"{after:.3g}; raise lr_inference or latent_steps"
            )
    return found


class Health:
    """Looks at the lines of a log one after another and tells each sign once a stage."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.first: dict[str, Terms] = {}
        self.told: set[tuple[str, str]] = set()
        self.sentences = [s for e in entries if e.get("kind") == "train" for s in self.look(**_parts(e))]

    def look(self, stage: str, step: int, terms: Terms) -> list[str]:
        """The signs that show for the first time, as sentences."""
        first = self.first.setdefault(stage, terms)
        fresh = {n: text for n, text in signs(first, terms).items() if (stage, n) not in self.told}
        self.told |= {(stage, name) for name in fresh}
        return [f"at step {step} {text}" for text in fresh.values()]


def _parts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": entry.get("stage", ""), "step": entry.get("step", 0), "terms": entry["terms"]}
