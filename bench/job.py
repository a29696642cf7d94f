"""One run from configuration to record: train or reuse, evaluate, draw the grid, survive failures."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.build import Initial, build_method, load_weights, parameter_counts, steps_for_flops
from bench.config import RunConfig
from bench.device import hardware, set_deterministic
from bench.errors import UsageError
from bench.evaluate import HEADLINES, together
from bench.optimise import stage_file
from bench.progress import Reporter
from bench.provenance import code_hash, git_revision, now, versions
from bench.registry import load_method_class
from bench.safefiles import digest, finite, unwritable
from bench.scoring import add_scores, draw_grid, score, unobtainable
from bench.store import (
    CHECKPOINT,
    ERROR,
    GRID,
    LOG,
    OUTCOMES,
    REFINEMENT,
    SCHEMA,
    SCORES,
    WEIGHTS,
    RunFolder,
    find_trained,
    open_run,
    train_fingerprint,
    trained_code,
)
from bench.train import train
from datasets.spec import Dataset, UserError
from methods.base import Diverged, Method
from metrics import METRIC_VERSION

_TRAIN_TIMING = ("train_s", "validate_s", "save_s", "wall_s", "other_s", "step_s", "cpu_s")


@dataclass(frozen=True)
class Options:
    """Where things live and how to compute; nothing here changes the identity of a run but precision."""

    results: Path = Path("results")
    cache: Path = Path("cache")
    data: Path | None = None
    device: str = "auto"
    precision: str | None = None
    deterministic: bool = False
    init_from: str | None = None
    force: bool = False
    rescore: bool = False
    inception: Path | None = None
    clip: Path | None = None
    download: bool = True
    debug: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    method: str
    dataset: str
    preset: str
    seed: int
    status: str
    reason: str
    folder: Path
    reused: bool = False
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.status not in ("done", "skipped")


def check_samplers(config: RunConfig, method: Method) -> None:
    """Raises UsageError for a sampler in the plan that the method does not have, before it is trained.

    The method as it was built: `ours` without revision has no energy to sample with.
    """
    for name in config.plan.samplers or ():
        if name not in method.samplers:
            known = ", ".join(method.samplers)
            raise UsageError(f"{config.method} has no sampler '{name}'; plan.samplers may name: {known}")


class Job:
    """One run: a configuration on a data set; with `done`, one that is there already, under the id it has."""

    def __init__(
        self,
        config: RunConfig,
        data: Dataset,
        device: torch.device,
        options: Options,
        reporter: Reporter,
        initial: Initial | None = None,
        done: RunFolder | None = None,
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.options, self.reporter, self.initial = options, reporter, initial
        self.folder = done or open_run(options.results, config, data.fingerprint)
        self.trained = done.record["trained"] if done else train_fingerprint(config, data.fingerprint)
        self.title = f"{config.method} on {config.dataset} ({config.preset}, seed {config.seed})"
        self.code = ""
        self.began, self.last = time.monotonic(), True

    def guarded(self, last: bool = True) -> Outcome:
        """Run; turn every failure into a record and an outcome. Unless `last`, announce it at once."""
        self.began, self.last = time.monotonic(), last
        try:
            with self.folder.locked():
                return self._recorded()
        except UserError as error:
            # The lock's own: the record belongs to who holds it, so nothing is written.
            if self.options.debug:
                raise
            return self._announced("failed", str(error))

    def _recorded(self) -> Outcome:
        """Run, with the lock held, and write down how it ended."""
        try:
            return self._run()
        except UserError as error:
            if self.options.debug:
                raise
            return self._ended("failed", str(error))
        except Exception as error:
            with contextlib.suppress(OSError):
                (self.folder.path / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            if self.options.debug:
                raise
            text = (str(error).splitlines() or [""])[0]
            return self._ended("failed", f"{type(error).__name__}: {text} (see {self.folder.path / ERROR})")

    def _ended(self, status: str, reason: str) -> Outcome:
        """Record an end without scores, as far as the folder can be written."""
        if self.folder.record:
            with contextlib.suppress(UserError):
                self.folder.write_record({"status": status, "reason": reason, "finished": now()})
        return self._announced(status, reason)

    def _announced(self, status: str, reason: str) -> Outcome:
        if not self.last:
            self.reporter.say(f"{self.title}: {status}: {reason}")
        return self._outcome(status, reason)

    def _outcome(self, status: str, reason: str = "", reused: bool = False) -> Outcome:
        c, took = self.config, time.monotonic() - self.began
        return Outcome(c.method, c.dataset, c.preset, c.seed, status, reason, self.folder.path, reused, took)

    def _run(self) -> Outcome:
        set_deterministic(self.config.train.deterministic)
        if self.options.force:
            self.folder.clear()
        known = dict(self.folder.read_record())
        kind = load_method_class(self.config.method)
        self.code = code_hash(kind)
        trained = known.get("trained") == self.trained and (self.folder.path / WEIGHTS).exists()
        if trained and trained_code(known) not in ("", self.code):
            self.reporter.say(
                f"note: the code of {self.config.method} changed since; `bench run --force` trains it again"
            )
        missing = self.config.plan.metrics if self.options.rescore else self._missing_metrics()
        if known.get("status") == "done" and not missing:
            self.reporter.say(f"{self.title}: done before, reused")
            return self._outcome("done", reused=True)
        reasons = [kind.unsupported(self.data.spec, task) for task in ("joint", "cross", "encode")]
        self._start(known)
        if all(reasons):
            return self._ended("skipped", str(reasons[0]))
        self.reporter.say(f"{self.title}: {self.folder.path}")
        method = build_method(self.config, self.data.spec, self.device)
        check_samplers(self.config, method)
        self.folder.write_record({"parameters": parameter_counts(method)})
        if known.get("status") == "diverged":
            # The same steps would end the same way, unless the code was mended: start over.
            self.folder.drop(CHECKPOINT)
        if not trained:
            # What is there from other weights would stand beside the scores of these.
            self.folder.drop(SCORES, OUTCOMES, REFINEMENT, GRID)
            self.folder.record["fingerprints"]["scores"], missing = {}, ()
            ended = self._obtain_weights(method)
            if ended is not None:
                return ended
        # Scored from the file, so that a fresh, a resumed and a reused run are the same thing.
        method = build_method(self.config, self.data.spec, self.device)
        load_weights(method, self.folder.load_weights(), self.folder.path / WEIGHTS)
        try:
            self._score(method, missing or self.config.plan.metrics)
        except Diverged as error:
            return self._ended("diverged", str(error))
        self.folder.drop(ERROR)
        return self._outcome("done")

    def _start(self, known: dict[str, Any]) -> None:
        """The record of a run under way. What earlier attempts found out stays in.

        `code`, `git`, `versions` and `hardware` are those of this call, which scores; those of the call
        that trained stay under `training`.
        """
        config, data = self.config, self.data
        training = known.get("training")
        if training and "code" not in training:
            # Written before the two were kept apart, when they were one.
            training = {**training, **{key: known.get(key) for key in ("code", "git", "versions")}}
        self.folder.write_record(
            {
                "schema": SCHEMA,
                "run_id": self.folder.path.name,
                "method": config.method,
                "dataset": config.dataset,
                "preset": config.preset,
                "seed": config.seed,
                "status": "running",
                "reason": "",
                "overrides": dict(config.overrides),
                "config": config.to_json(),
                "data": {"name": data.name, "fingerprint": data.fingerprint, "notes": list(data.notes)},
                "judges": known.get("judges"),
                "precision": config.train.precision,
                "hardware": hardware(self.device),
                "versions": versions(),
                "git": git_revision(),
                "code": self.code,
                "training": training,
                "init_from": self.initial.to_json() if self.initial else known.get("init_from"),
                "fingerprints": {
                    "train": self.trained,
                    "scores": known.get("fingerprints", {}).get("scores", {}),
                },
                "timing": known.get("timing", {}),
                "started": known.get("started") or now(),
                "finished": None,
            }
        )

    def _obtain_weights(self, method: Method) -> Outcome | None:
        """Take the weights of a run with the same training, or train. An outcome means it ended there."""
        budget, splits = self.config.train, (self.data.split("train"), self.data.split("val"))
        twin = find_trained(self.folder, self.trained, self.code)
        if twin is None and budget.flops is not None:
            # A run that asks for as many steps outright has the same weights; it does not look for this one.
            budget = dataclasses.replace(
                budget, flops=None, steps=steps_for_flops(method, splits[0], budget, self.device)
            )
            same = train_fingerprint(dataclasses.replace(self.config, train=budget), self.data.fingerprint)
            twin = find_trained(self.folder, same, self.code)
        if twin is not None:
            self.reporter.say(f"weights taken from run {twin.path.name}, trained the same way")
            # The ends of its stages go along, since `--init-from` starts from those.
            ends = [stage_file(stage.name) for stage in method.stages[:-1]]
            for name in (LOG, *ends, WEIGHTS):
                if (twin.path / name).exists():
                    try:
                        shutil.copyfile(twin.path / name, self.folder.path / name)
                    except OSError as error:
                        raise unwritable(self.folder.path / name, error) from error
            timing = {k: v for k, v in twin.record.get("timing", {}).items() if k in _TRAIN_TIMING}
            kept = {"training": twin.record.get("training"), "trained": self.trained, "timing": timing}
            self.folder.write_record(kept)
            return None
        first_stage = 0
        if self.initial is not None:
            self.initial.load(method)
            first_stage = self.initial.first_stage
        result = train(
            method,
            *splits,
            budget,
            self.folder,
            seed=self.config.seed,
            device=self.device,
            progress=self.reporter,
            first_stage=first_stage,
            code=self.code,
        )
        training = {
            "steps": result.steps,
            "batch_size": budget.batch_size,
            "validation": result.validation,
            "stages": result.stages,
            "resumed_at": result.resumed_at,
            "code": result.code,
            "git": git_revision(),
            "versions": versions(),
            "hardware": hardware(self.device),
        }
        timing = {k: round(v, 3) for k, v in result.timing.items()}
        self.folder.write_record({"training": finite(training), "timing": timing})
        if result.status != "done":
            return self._ended(result.status, result.reason)
        self.folder.save_weights(method.state_dict())
        self.folder.write_record({"trained": self.trained})
        self.folder.drop(CHECKPOINT)
        return None

    def _metric_fingerprint(self, name: str) -> str:
        return digest([self.trained, self.config.plan.identity(), name, METRIC_VERSION])

    def _missing_metrics(self) -> tuple[str, ...]:
        """Families of the plan that this folder has no valid scores for."""
        have = self.folder.record.get("fingerprints", {}).get("scores", {})
        try:
            stored, _ = self.folder.read_scores()
        except UserError:
            stored = []
        have = have if stored else {}
        planned = self.config.plan.metrics
        missing = tuple(n for n in planned if have.get(n) != self._metric_fingerprint(n))
        if have and missing and set(missing) <= {"fid", "clip"}:
            # Looked for again, since the weights may be here now; without them nothing is drawn again.
            gone = unobtainable(missing, self.options)
            if set(gone) == set(missing):
                for name, reason in gone.items():
                    self.reporter.say(f"note: {name} cannot be had here: {reason}")
                return ()
        return together(missing, planned)

    def _score(self, method: Method, names: tuple[str, ...]) -> None:
        """Compute the missing metrics, add them to the others, draw the grid, finish the record."""
        plan = dataclasses.replace(self.config.plan, metrics=names)
        began, busy = time.monotonic(), time.process_time()
        trained_on = (self.folder.record.get("training") or {}).get("hardware")
        # A step timed on another machine says nothing about this one.
        same = trained_on == hardware(self.device)
        step = self.folder.record.get("timing", {}).get("step_s") if same else None
        found = score(method, self.data, plan, self.config, self.device, self.options, self.reporter, step)
        add_scores(self.folder, found, self.config.plan)
        draw_grid(method, self.data, self.config, self.folder.path / GRID)
        # What could not be had (weights to download, say) is asked for again next time.
        lacking = {
            s.metric for s in found.scores if s.unavailable and not s.unavailable.startswith("skipped")
        }
        had = [n for n in names if not lacking & {m for ms in HEADLINES.get(n, {}).values() for m in ms}]
        valid = self.folder.record["fingerprints"]["scores"] | {n: self._metric_fingerprint(n) for n in had}
        spent = {"evaluate_s": time.monotonic() - began, "evaluate_cpu_s": time.process_time() - busy}
        timing = {**self.folder.record.get("timing", {}), **spent}
        timing["evaluation"] = {k: round(v, 3) for k, v in found.timing.items()}
        self.folder.write_record(
            {
                "status": "done",
                "reason": "",
                "judges": found.judges or self.folder.record.get("judges"),
                "skipped": found.skipped,
                "fingerprints": {"train": self.trained, "scores": valid},
                "timing": timing,
                "finished": now(),
            }
        )
