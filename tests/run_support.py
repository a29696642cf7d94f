"""Runs of a tiny method on tiny data, for the tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench.job
from bench.job import Options, Outcome
from bench.progress import Reporter
from bench.run import run_many

SETTINGS = ("train.steps=20", "train.batch_size=40", "plan.metrics=latent", "plan.probe_train=60")
METHOD, DATA = "tiny:TinyVAE", "tiny:TinyData"


def options_in(folder: Path) -> Options:
    """Results and cache below a folder, no GPU, no download."""
    return Options(results=folder / "results", cache=folder / "cache", device="cpu", download=False)


def counted_trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets one entry (the seed) for every training that really takes place."""
    seen: list[int] = []
    original = bench.job.train

    def train(*args: Any, **keys: Any) -> Any:
        seen.append(keys["seed"])
        return original(*args, **keys)

    monkeypatch.setattr(bench.job, "train", train)
    return seen


def go(options: Options, *overrides: str, methods: tuple[str, ...] = (METHOD,), **keys: Any) -> list[Outcome]:
    """`bench run` of the tiny method with `SETTINGS` and these overrides."""
    quiet = Reporter(quiet=True)
    settings = [*SETTINGS, *overrides]
    return run_many(methods, DATA, "quick", overrides=settings, options=options, reporter=quiet, **keys)


def record(outcome: Outcome) -> dict[str, Any]:
    """The run.json of a run."""
    return json.loads((outcome.folder / "run.json").read_text())
