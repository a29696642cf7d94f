"""Which runs a row of a publication stands for, and the command that would make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from bench.config import resolve
from bench.reference import Reference, Variant
from bench.summary import Group, Result, Run, canonical, defaults, given
from datasets.spec import UserError

PAPER_STEPS = 30
"""Length of both chains of `ours` in the main paper, which its sweeps and ablations go by."""

FLOPS_TOLERANCE = 0.05
"""Relative difference of two training budgets that still count as equal; steps are whole numbers."""


def needed(variant: Variant, dataset: str, preset: str) -> dict[str, Any]:
    """The hyper-parameters a row asks of its runs; lengths of chains in proportion to those of the preset.

    `quick` runs 10 steps where the paper runs 30, so the paper's 60 stand beside 20.
    """
    if not variant.chains:
        return dict(variant.hyper)
    return {
        key: max(1, round(steps * own_steps(dataset, preset, key) / PAPER_STEPS))
        for key, steps in variant.hyper.items()
    }


def own_steps(dataset: str, preset: str, key: str) -> int:
    """Length of a chain of `ours` in a preset; its default, the paper's, where there is no such preset."""
    return int(preset_hyper("ours", dataset, preset).get(key, PAPER_STEPS))


def fits(result: Result, variant: Variant, group: Group, budget: float | None = None) -> bool:
    """Whether these runs of `group` are what `variant` names: its hyper-parameters, no other override.

    budget: training FLOPs that a variant with `same_flops_as` must have spent.
    """
    if result.method != variant.method:
        return False
    if not variant.hyper:
        return not result.overrides
    hyper = needed(variant, group.key.dataset, group.key.preset)
    free = {"train.flops"} if variant.same_flops_as else set()
    runs = [*result.runs, *result.unfinished]
    if not all(_has(run, hyper) and set(given(run)) <= {*hyper, *free} for run in runs):
        return False
    if not variant.same_flops_as or not result.runs:
        return True
    counted = flops_of(variant.method, group.key.dataset, group.key.preset) is not None
    if counted and not any("train.flops" in given(run) for run in runs):
        return True  # the preset gives as many to all
    spent = training_flops(result)
    return bool(budget and spent) and abs(spent / budget - 1) <= FLOPS_TOLERANCE


def is_the_preset(variant: Variant, dataset: str, preset: str) -> bool:
    """Whether an ablation is what a preset does anyway, so that there is nothing to compare."""
    if not variant.ablation or not variant.hyper or variant.chains:
        return False
    own = preset_hyper(variant.method, dataset, preset)
    return all(own.get(key) == value for key, value in variant.hyper.items())


def is_named_again(variant: Variant, others: Iterable[Variant], dataset: str, preset: str) -> bool:
    """Whether one of `others` stands for the same runs, as it does where a preset counts operations.

    There are no runs of as many examples then, only those of as many operations.
    """
    if variant.same_flops_as or flops_of(variant.method, dataset, preset) is None:
        return False
    own = (variant.method, variant.sampler, variant.hyper)
    return any(v.same_flops_as and (v.method, v.sampler, v.hyper) == own for v in others)


def flops_of(method: str, dataset: str, preset: str) -> float | None:
    """Training FLOPs that a preset gives a method, None where it counts steps or is not here."""
    try:
        return resolve(method, dataset, preset).train.flops
    except UserError:
        return None


@cache
def preset_hyper(method: str, dataset: str, preset: str) -> Mapping[str, Any]:
    """All hyper-parameters of a preset, with those at their defaults; of no preset the defaults alone."""
    try:
        return {**defaults(method), **resolve(method, dataset, preset).hyper}
    except UserError:
        return defaults(method)


def _has(run: Run, hyper: Mapping[str, Any]) -> bool:
    # A record that is older than a hyper-parameter was made with what is now its default.
    known = defaults(str(run.record.get("method", "")))
    have = {**known, **((run.record.get("config") or {}).get("hyper") or {})}
    return all(have.get(key) == value for key, value in hyper.items())


def find_result(group: Group | None, variant: Variant, book: Reference) -> Result | None:
    """The row of a group that a published name stands for; of several the one with the fewest overrides."""
    if group is None:
        return None
    budget = budget_of(group, variant, book)
    found = [result for result in group.results if fits(result, variant, group, budget)]
    return min(found, key=lambda r: (not r.runs, len(r.overrides)), default=None)


def is_ablation(result: Result, group: Group, book: Reference) -> bool:
    """Whether these runs belong in tables of ablations only."""
    if result.method in book.ablations:
        return True
    named = (v for v in book.variants.values() if v.ablation)
    return bool(result.overrides) and any(fits(result, v, group, budget_of(group, v, book)) for v in named)


def budget_of(group: Group, variant: Variant, book: Reference) -> float | None:
    """Training FLOPs of the row whose cost `variant` must match, None where they are not known."""
    if not variant.same_flops_as:
        return None
    model = find_result(group, book.variants[variant.same_flops_as], book)
    return training_flops(model) if model else None


def training_flops(result: Result) -> float | None:
    """Floating-point operations of one training run: steps times the counted FLOPs of a step."""
    for run in result.runs:
        steps = (run.record.get("training") or {}).get("steps")
        counted = [s.value for s in run.scores if s.metric == "flops_per_step" and s.value]
        if steps and counted:
            return float(steps) * counted[0]
    return None


def row_command(variant: Variant, dataset: str, preset: str, flops: float | None = None) -> str | None:
    """`bench run` with what `variant` needs beyond the preset.

    flops: the training budget it has to match, if any; None where that is asked for and not known yet.
    """
    own = preset_hyper(variant.method, dataset, preset)
    changed = {k: v for k, v in needed(variant, dataset, preset).items() if own.get(k) != v}
    if variant.same_flops_as and flops_of(variant.method, dataset, preset) is None:
        if flops is None:
            return None
        changed["train.flops"] = f"{flops:.4g}"
    sets = "".join(f" --set {key}={value}" for key, value in changed.items())
    return f"bench run --method {variant.method} --dataset {dataset} --preset {preset}{sets}"


def otherwise_planned(group: Group, others: Iterable[Group]) -> set[str]:
    """Methods whose preset asks for another evaluation plan than the runs of `group`, and which were run so.

    The same command again would make the same run, which does not belong in this group.
    """
    return {
        result.method
        for other in others
        if other.key.budget == group.key.budget and group.key.differences(other.key) == ["plan"]
        for result in other.results
        if result.runs and not result.overrides and other.key.plan == _planned(result.method, other)
    }


def _planned(method: str, group: Group) -> str:
    """The plan that the preset of a group has for a method, as keys of groups hold it; "" for no preset."""
    try:
        return canonical(resolve(method, group.key.dataset, group.key.preset).plan.identity())
    except UserError:  # a method, data set or preset that is not here
        return ""
