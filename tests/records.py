"""Made-up run records for the tests of tables and figures: folders as the suite writes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from metrics.protocol import Score

PLAN = {"joint": 1000, "cross": 500, "subsets": "nested", "nested": 500, "samplers": None, "split": "test"}
JUDGES = {
    "hash": "judge-1",
    "accuracy": {"m0": 0.97, "m1": 0.96},
    "source": {"m0": "trained", "m1": "official"},
}


def coherence_scores(
    joint: float = 0.4,
    cross: float = 0.6,
    sampler: str = "ancestral",
    share: float = 0.12,
    judge: str = "judge-1",
) -> list[Score]:
    """Scores of one sampler: coherences by number given, diversity and the distance of the classifiers."""
    on_joint = {"task": "joint", "sampler": sampler, "judge": judge}
    on_cross = {"task": "cross", "sampler": sampler, "judge": judge}
    scores = [
        Score("coherence_joint", joint, 1000, "higher", low=joint - 0.03, high=joint + 0.03, **on_joint),
        Score("largest_share", share, 1000, "lower", **on_joint),
        Score("largest_share", share / 2, 1000, "lower", target="m0", **on_joint),
        Score("largest_share", 0.9, 3, "lower", attribute="coherent", **on_joint),
        Score("coherence_cross", cross + 0.1, 500, "higher", given="m0", target="m1", **on_cross),
        Score("coherence_cross", cross, 500, "higher", low=cross - 0.02, high=cross + 0.02, **on_cross),
        Score("fd_clf_uncond", 300 - 100 * joint, 1000, "lower", **on_joint),
        Score("fd_clf_cond", 350 - 100 * cross, 500, "lower", **on_cross),
        Score("fd_clf_cond_cross", 360 - 100 * cross, 500, "lower", **on_cross),
        Score("swd_uncond", 200 - 100 * joint, 1000, "lower", **on_joint),
    ]
    for task in ("joint", "cross"):
        drawn = {"task": task, "sampler": sampler}
        scores.append(Score("sampling_time_s", 0.002, 100, "lower", attribute="per image", **drawn))
        scores.append(Score("nfe", 31 if sampler == "ebm" else 1, 1, "lower", **drawn))
    for k in range(1, 5):
        value = cross + 0.01 * k
        scores.append(
            Score(
                "coherence_cross_n", value - 0.005, 500, "higher", attribute=f"nested n_given={k}", **on_cross
            )
        )
        scores.append(Score("coherence_cross_n", value, 500, "higher", attribute=f"n_given={k}", **on_cross))
    return scores


def method_scores(latent: float = 0.8) -> list[Score]:
    """Scores that no sampler changes."""
    missing = "Inception weights are missing; get them with `bench doctor --inception`"
    return [
        Score("latent_acc", latent, 5000, "higher", attribute="500 z", low=latent - 0.01, high=latent + 0.01),
        Score("latent_acc", latent - 0.2, 5000, "higher", given="m0", attribute="500 z"),
        Score("latent_acc", latent + 0.05, 5000, "higher", attribute="full z"),
        Score("fid_uncond", None, 0, "lower", unavailable=missing),
        Score("parameters", 1_234_567, 1, ""),
        Score("param_overhead", 0, 1, "lower"),
        Score("train_time_s_per_iter", 0.05, 50, "lower"),
        Score("coherence_ceiling", 0.83, 5000, "higher", task="joint", judge="judge-1"),
        Score("coherence_ceiling", 0.96, 5000, "higher", task="cross", judge="judge-1"),
    ]


def write_run(
    root: Path,
    method: str = "mmvae",
    scores: list[Score] | None = None,
    *,
    dataset: str = "polydigits",
    preset: str = "quick",
    seed: int = 0,
    status: str = "done",
    reason: str = "",
    overrides: dict[str, Any] | None = None,
    hyper: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    fingerprint: str = "data-1",
    judges: dict[str, Any] | None = JUDGES,
    metric_version: str = "1",
    hardware: str = "a test machine",
    precision: str = "fp32",
    finished: str = "2026-01-01T00:00:00",
    log: list[dict[str, Any]] | None = None,
) -> Path:
    """Write one run folder under `root/runs` and return it; without scores those of a plain run."""
    plan = {**PLAN, **(plan or {})}
    if scores is None:
        scores = coherence_scores() + method_scores() if status == "done" else []
    changed = overrides or {}
    settings = {"latent": 32, **(hyper or {}), **{k: v for k, v in changed.items() if "." not in k}}
    config = {
        "hyper": settings,
        "train": {"steps": 100, "precision": precision, **(train or {})},
        "plan": plan,
    }
    key = [
        method,
        dataset,
        preset,
        seed,
        config,
        changed,
        fingerprint,
        judges,
        metric_version,
        precision,
        finished,
    ]
    run_id = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / "runs" / dataset / method / run_id
    folder.mkdir(parents=True)
    record = {
        "schema": 1, "run_id": run_id, "method": method, "dataset": dataset, "preset": preset, "seed": seed,
        "status": status, "reason": reason, "overrides": changed, "config": {**config, "init_from": ""},
        "data": {"name": dataset, "fingerprint": fingerprint, "notes": ["m1 has a stand-in background"]},
        "judges": judges if status == "done" else None, "precision": precision,
        "hardware": {"device": "cpu", "name": hardware, "cores": 2},
        "started": finished, "finished": finished,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if scores:
        rows = [score.to_json() for score in scores]
        content = {"schema": 1, "metric_version": metric_version, "plan": plan, "scores": rows}
        (folder / "scores.json").write_text(json.dumps(content))
    if log:
        (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def ours_scores(joint: float = 0.55, cross: float = 0.85) -> list[Score]:
    """A method with three samplers, one of which draws conditionals only."""
    revised = [s for s in coherence_scores(joint, cross + 0.02, "gen_revised") if s.task == "cross"]
    return (
        coherence_scores(joint, cross - 0.05, "ebm")
        + coherence_scores(joint - 0.05, cross, "gen")
        + revised
        + method_scores(0.9)
    )
